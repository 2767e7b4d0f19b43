/* Options, and the steps that turn a launched process into a monitor. */
#define _GNU_SOURCE
#include "conmon.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>

enum kind { FLAG, VALUE, LIST };

/* The options, and where in struct options they go. Each value is an argument of its own. */
static const struct known {
	const char *name;
	enum kind kind;
	size_t at, count;
} known[] = {
	{ "--id", VALUE, offsetof(struct options, id), 0 },
	{ "--run-dir", VALUE, offsetof(struct options, run_dir), 0 },
	{ "--runtime", VALUE, offsetof(struct options, runtime), 0 },
	{ "--runtime-arg", LIST, offsetof(struct options, runtime_args), offsetof(struct options, n_runtime_args) },
	{ "--log-path", VALUE, offsetof(struct options, log_path), 0 },
	{ "--stdio-uid", VALUE, offsetof(struct options, uid), 0 },
	{ "--stdio-gid", VALUE, offsetof(struct options, gid), 0 },
	{ "--log-size-max", VALUE, offsetof(struct options, log_size), 0 },
	{ "--tty", FLAG, offsetof(struct options, tty), 0 },
	{ "--stdin", FLAG, offsetof(struct options, use_stdin), 0 },
	{ "--sandboxed", FLAG, offsetof(struct options, sandboxed), 0 },
	{ "--stdin-once", FLAG, offsetof(struct options, stdin_once), 0 },
	{ "--join-cgroup", LIST, offsetof(struct options, join), offsetof(struct options, n_join) },
	{ "--kill-cgroup", LIST, offsetof(struct options, kill), offsetof(struct options, n_kill) },
	{ "--oom-file", VALUE, offsetof(struct options, oom_file), 0 },
	{ "--pod-oom-file", VALUE, offsetof(struct options, pod_oom_file), 0 },
};

/* Takes one option and returns how many arguments it was. */
static int take_option(struct options *o, char **argv)
{
	for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
		char *field = (char *)o + known[i].at;
		size_t *n = (size_t *)(void *)((char *)o + known[i].count);

		if (strcmp(argv[0], known[i].name) != 0)
			continue;
		if (known[i].kind == FLAG) {
			*(bool *)field = true;
			return 1;
		}
		if (!argv[1])
			return -EINVAL;
		if (known[i].kind == VALUE)
			*(const char **)(void *)field = argv[1];
		else if (*n == MAX_ARGS)
			return -E2BIG;
		else
			((const char **)(void *)field)[(*n)++] = argv[1];
		return 2;
	}
	return -EINVAL;
}

/* An optional number of at most max. */
static int parse_option(const char *s, uint64_t max, uint64_t *ret)
{
	const char *end = "";

	if (s && parse_number(s, &end, ret) < 0)
		return -EINVAL;
	return *end || *ret > max ? -EINVAL : 0;
}

static int parse(char **argv, struct options *o)
{
	uint64_t limit = 0, uid = 0, gid = 0;
	int r;

	while (*argv) {
		if ((r = take_option(o, argv)) < 0)
			return r;
		argv += r;
	}
	if (parse_option(o->log_size, INT64_MAX, &limit) < 0 || parse_option(o->uid, UINT32_MAX - 1, &uid) < 0 ||
	    parse_option(o->gid, UINT32_MAX - 1, &gid) < 0)
		return -EINVAL;
	o->log_size_max = (int64_t)limit;
	o->stdio_uid = (uint32_t)uid;
	o->stdio_gid = (uint32_t)gid;
	if (!o->id || strlen(o->id) > MAX_ID || !o->run_dir || o->run_dir[0] != '/' || !o->runtime)
		return -EINVAL;
	return 0;
}

/* No handler is ever installed: signals are read like everything else. */
static int take_signals(struct conmon *m)
{
	uint64_t every = ~0ULL;
	sigset_t all;

	/* The kernel's own call: a C library leaves out those that it uses itself, and with
	 * their default action they end us. */
	if (syscall(SYS_rt_sigprocmask, SIG_SETMASK, &every, NULL, sizeof every) < 0)
		return -errno;
	sigfillset(&all);
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

	if (syscall(SYS_close_range, (unsigned)FD_DAEMON + 1, ~0U, 0U) < 0 || ioctl(FD_DAEMON, FIOCLEX) < 0)
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
	m->listener = sock_listen(m, "ctl", SOCK_SEQPACKET);
	if (m->listener < 0)
		return m->listener;
	m->stage = m->opt.log_path ? m->opt.log_path : "log";
	m->log.path = m->opt.log_path;
	m->log.size_max = m->opt.log_size_max;
	return log_open(&m->log);
}

/* Says why on stderr, which the daemon reads until we are in the background. */
static void complain(const char *about, const char *why)
{
	char buf[MAX_TEXT];
	struct text t = text_in(buf, sizeof buf);

	text_put(&t, "conmon: ");
	text_put(&t, about);
	text_put(&t, ": ");
	text_put(&t, why);
	text_put(&t, "\n");
	if (write(2, buf, (size_t)(t.at - buf)) < 0)
		return;
}

static void refuse(struct conmon *m, int r)
{
	struct text t = text_in(m->failure, sizeof m->failure);

	text_put(&t, "monitor: ");
	text_put(&t, m->stage);
	text_put(&t, ": ");
	text_put(&t, strerror(-r));
	complain(m->opt.id, m->failure);
	client_add(m, FD_DAEMON, true);
	proto_push_failed(m);
}

int main(int argc, char **argv)
{
	static struct conmon m; /* too large for a stack, and there is no heap */
	int r;

	/* Nobody has a reason to trace us or to read our memory, a container that shares
	 * our uid least of all. */
	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
		return 2;
	if (argc > 1 && strcmp(argv[1], "exec") == 0)
		return exec_main(argc - 2, argv + 2);
	m.stage = "start";
	r = conmon_init(&m);
	if (r == 0)
		r = argc > 0 ? parse(argv + 1, &m.opt) : -EINVAL;
	if (r < 0) {
		complain("bad arguments", strerror(-r));
		return 2;
	}
	if ((r = prepare(&m)) < 0 || (r = detach(&m)) < 0 || (r = take_signals(&m)) < 0) {
		refuse(&m, r);
		return 1;
	}
	shun_oom(&m);
	client_add(&m, FD_DAEMON, true);
	loop_run(&m);
	return unlinkat(m.dir, "ctl", 0) < 0;
}
