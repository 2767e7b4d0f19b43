/* Options, and the steps that turn a launched process into a monitor. */
#define _GNU_SOURCE
#include "conmon.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>

static const struct option known[] = {
	{ "id", required_argument, NULL, 'i' },
	{ "run-dir", required_argument, NULL, 'd' },
	{ "runtime", required_argument, NULL, 'r' },
	{ "runtime-arg", required_argument, NULL, 'a' },
	{ "log-path", required_argument, NULL, 'l' },
	{ "log-size-max", required_argument, NULL, 's' },
	{ "tty", no_argument, NULL, 't' },
	{ "stdin", no_argument, NULL, 'n' },
	{ "stdin-once", no_argument, NULL, 'o' },
	{ "join-cgroup", required_argument, NULL, 'j' },
	{ "kill-cgroup", required_argument, NULL, 'k' },
	{ "oom-file", required_argument, NULL, 'm' },
	{ "pod-oom-file", required_argument, NULL, 'p' },
	{ NULL, 0, NULL, 0 },
};

static int append(const char **list, size_t *n, const char *value)
{
	if (*n == MAX_ARGS)
		return -E2BIG;
	list[(*n)++] = value;
	return 0;
}

static int parse(int argc, char **argv, struct options *o)
{
	int c, r = 0;
	char *end;

	while (r == 0 && (c = getopt_long(argc, argv, "", known, NULL)) != -1) {
		switch (c) {
		case 'i': o->id = optarg; break;
		case 'd': o->run_dir = optarg; break;
		case 'r': o->runtime = optarg; break;
		case 'a': r = append(o->runtime_args, &o->n_runtime_args, optarg); break;
		case 'l': o->log_path = optarg; break;
		case 's':
			errno = 0;
			o->log_size_max = strtoll(optarg, &end, 10);
			r = errno || *end || o->log_size_max < 0 ? -EINVAL : 0;
			break;
		case 't': o->tty = true; break;
		case 'n': o->use_stdin = true; break;
		case 'o': o->stdin_once = true; break;
		case 'j': r = append(o->join, &o->n_join, optarg); break;
		case 'k': r = append(o->kill, &o->n_kill, optarg); break;
		case 'm': o->oom_file = optarg; break;
		case 'p': o->pod_oom_file = optarg; break;
		default: r = -EINVAL;
		}
	}
	if (r == 0 && (optind != argc || !o->id || !o->run_dir || o->run_dir[0] != '/' || !o->runtime))
		r = -EINVAL;
	return r;
}

static void init_fds(struct conmon *m)
{
	int *unset[] = { &m->dir,	 &m->signals,	 &m->listener,	    &m->console,
			 &m->devnull,	 &m->init_pidfd, &m->stdin_fd,	    &m->container_oom.fd,
			 &m->pod_oom.fd, &m->log.fd,	 &m->streams[0].fd, &m->streams[1].fd };

	for (size_t i = 0; i < sizeof unset / sizeof *unset; i++)
		*unset[i] = -1;
	for (size_t i = 0; i < MAX_CLIENTS; i++)
		m->clients[i].fd = -1;
	m->streams[0].name = "stdout";
	m->streams[1].name = "stderr";
}

/* No handler is ever installed: signals are read like everything else. */
static int take_signals(struct conmon *m)
{
	sigset_t all;

	sigfillset(&all);
	if (sigprocmask(SIG_SETMASK, &all, NULL) < 0)
		return -errno;
	m->signals = signalfd(-1, &all, SFD_CLOEXEC | SFD_NONBLOCK);
	return m->signals < 0 ? -errno : 0;
}

/* Leaves the launcher behind, in which the daemon's wait ends. */
static int detach(struct conmon *m)
{
	pid_t pid = fork();

	m->stage = "go into the background";
	if (pid < 0)
		return -errno;
	if (pid > 0)
		_exit(0);
	if (setsid() < 0 || prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) < 0)
		return -errno;
	for (int fd = 0; fd < FD_DAEMON; fd++)
		if (dup2(m->devnull, fd) < 0)
			return -errno;
	umask(022);
	return chdir("/") < 0 ? -errno : 0;
}

/* As unlikely to be killed as the node allows. Without CAP_SYS_RESOURCE it does not
 * allow less than it had before, and that is what stays. */
static void shun_oom(struct conmon *m)
{
	cleanup_close int fd = open("/proc/self/oom_score_adj", O_RDWR | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, m->oom_score_adj, sizeof m->oom_score_adj - 1);

	m->oom_score_adj[n > 0 ? n : 0] = '\0';
	if (n > 0 && pwrite(fd, "-1000", 5, 0) < 0)
		return;
}

static int prepare(struct conmon *m)
{
	int r;

	if (syscall(SYS_close_range, (unsigned)FD_DAEMON + 1, ~0U, 0U) < 0 || fcntl(FD_DAEMON, F_SETFD, FD_CLOEXEC) < 0)
		return -errno;
	for (size_t i = 0; i < m->opt.n_join; i++)
		if ((r = cgroup_join(m->stage = m->opt.join[i])) < 0)
			return r;
	m->stage = m->opt.run_dir;
	m->devnull = open("/dev/null", O_RDWR | O_CLOEXEC);
	m->dir = open(m->opt.run_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (m->devnull < 0 || m->dir < 0)
		return -errno;
	if (unlinkat(m->dir, "exit", 0) < 0 && errno != ENOENT)
		return -errno;
	if ((r = proto_listen(m)) < 0)
		return r;
	m->stage = m->opt.log_path ? m->opt.log_path : "log";
	m->log.path = m->opt.log_path;
	m->log.size_max = m->opt.log_size_max;
	return log_open(&m->log);
}

int main(int argc, char **argv)
{
	static struct conmon m; /* too large for a stack, and there is no heap */
	int r;

	if (argc > 1 && strcmp(argv[1], "exec") == 0)
		return exec_main(argc - 2, argv + 2);
	init_fds(&m);
	m.stage = "start";
	r = parse(argc, argv, &m.opt);
	if (r < 0) {
		fprintf(stderr, "conmon: bad arguments: %s\n", strerror(-r));
		return 2;
	}
	if ((r = prepare(&m)) < 0 || (r = detach(&m)) < 0 || (r = take_signals(&m)) < 0) {
		snprintf(m.failure, sizeof m.failure, "monitor: %s: %s", m.stage, strerror(-r));
		fprintf(stderr, "conmon: %s: %s\n", m.opt.id, m.failure);
		proto_add(&m, FD_DAEMON, true);
		proto_push_failed(&m);
		return 1;
	}
	shun_oom(&m);
	proto_add(&m, FD_DAEMON, true);
	r = loop_run(&m);
	(void)unlinkat(m.dir, "ctl", 0);
	return r < 0;
}
