/* The OCI runtime's commands, and what is learned of the container's first process. */
#define _GNU_SOURCE
#include "conmon.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>

extern char **environ;

static const char *const oci_log = "oci-log";
static const char *const pid_file = "pid";
static const char *const console_socket = "console";

/* A container whose configuration sets no score would inherit ours, and never be
 * chosen by the OOM killer. */
static void restore_oom_score(const struct conmon *m)
{
	int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

	if (fd >= 0) {
		if (m->oom_score_adj[0] && write(fd, m->oom_score_adj, strlen(m->oom_score_adj)) < 0)
			_exit(126);
		close(fd);
	}
}

/* Runs the runtime with stdio in, out, err. Only these three descriptors reach it. */
static int spawn(struct conmon *m, const char *const *tail, const int stdio[3])
{
	const char *argv[MAX_ARGS + 16];
	size_t n = 0;
	pid_t pid;

	argv[n++] = m->opt.runtime;
	argv[n++] = "--log";
	argv[n++] = m->scratch;
	argv[n++] = "--log-format";
	argv[n++] = "json";
	for (size_t i = 0; i < m->opt.n_runtime_args; i++)
		argv[n++] = m->opt.runtime_args[i];
	for (; *tail; tail++)
		argv[n++] = *tail;
	argv[n] = NULL;
	if (snprintf(m->scratch, sizeof m->scratch, "%s/%s", m->opt.run_dir, oci_log) >= (int)sizeof m->scratch)
		return -ENAMETOOLONG;

	pid = fork();
	if (pid < 0)
		return -errno;
	if (pid == 0) {
		sigset_t none;

		restore_oom_score(m);
		sigemptyset(&none);
		if (sigprocmask(SIG_SETMASK, &none, NULL) < 0 || fchdir(m->dir) < 0 || dup2(stdio[0], 0) < 0 ||
		    dup2(stdio[1], 1) < 0 || dup2(stdio[2], 2) < 0 || syscall(SYS_close_range, 3U, ~0U, 0U) < 0)
			_exit(126);
		execve(m->opt.runtime, (char *const *)(uintptr_t)argv, environ);
		_exit(127);
	}
	m->runtime = pid;
	return 0;
}

static int nonblocking(int fd)
{
	int flags = fcntl(fd, F_GETFL);

	return flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ? -errno : 0;
}

static int make_pipe(int *reader, int *writer)
{
	int fds[2];

	if (pipe2(fds, O_CLOEXEC) < 0)
		return -errno;
	*reader = fds[0];
	*writer = fds[1];
	return 0;
}

/* Where the runtime sends the terminal's master. The name is relative: the path may
 * be longer than a socket's address. */
static int listen_console(struct conmon *m)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd;

	strcpy(a.sun_path, console_socket);
	if (unlinkat(m->dir, console_socket, 0) < 0 && errno != ENOENT)
		return -errno;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	if (fchdir(m->dir) < 0 || bind(fd, (struct sockaddr *)&a, sizeof a) < 0 || listen(fd, 1) < 0 ||
	    chdir("/") < 0) {
		int r = -errno;

		close(fd);
		return r;
	}
	m->console = fd;
	return 0;
}

int child_create(struct conmon *m)
{
	const char *tail[] = {
		"create", "--bundle", m->opt.run_dir, "--pid-file", pid_file, m->opt.id, NULL, NULL, NULL
	};
	cleanup_close int in = -1, out = -1, err = -1;
	int r;

	if (unlinkat(m->dir, pid_file, 0) < 0 && errno != ENOENT)
		return -errno;
	/* The words of an earlier attempt are not this one's. */
	if (unlinkat(m->dir, oci_log, 0) < 0 && errno != ENOENT)
		return -errno;
	if (m->opt.tty) {
		tail[5] = "--console-socket";
		tail[6] = console_socket;
		tail[7] = m->opt.id;
		if ((r = listen_console(m)) < 0)
			return r;
		return spawn(m, tail, (int[3]){ m->devnull, m->devnull, m->devnull });
	}
	if (m->opt.use_stdin && (r = make_pipe(&in, &m->stdin_fd)) < 0)
		return r;
	if ((r = make_pipe(&m->streams[0].fd, &out)) < 0 || (r = make_pipe(&m->streams[1].fd, &err)) < 0)
		return r;
	if ((r = nonblocking(m->streams[0].fd)) < 0 || (r = nonblocking(m->streams[1].fd)) < 0)
		return r;
	return spawn(m, tail, (int[3]){ in >= 0 ? in : m->devnull, out, err });
}

int child_start(struct conmon *m)
{
	const char *tail[] = { "start", m->opt.id, NULL };

	return spawn(m, tail, (int[3]){ m->devnull, m->devnull, m->devnull });
}

int child_delete(struct conmon *m)
{
	const char *tail[] = { "delete", "--force", m->opt.id, NULL };

	return spawn(m, tail, (int[3]){ m->devnull, m->devnull, m->devnull });
}

/* Reads a small file of the run directory into buf as a string. */
static ssize_t read_small(int dir, const char *name, char *buf, size_t size)
{
	cleanup_close int fd = openat(dir, name, O_RDONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return -errno;
	n = read(fd, buf, size - 1);
	if (n < 0)
		return -errno;
	buf[n] = '\0';
	return n;
}

/* The end of a file, as a string. */
static ssize_t read_tail(int dir, const char *name, char *buf, size_t size)
{
	cleanup_close int fd = openat(dir, name, O_RDONLY | O_CLOEXEC);
	off_t end = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);
	ssize_t n;

	if (end < 0)
		return -errno;
	n = pread(fd, buf, size - 1, end > (off_t)size - 1 ? end - ((off_t)size - 1) : 0);
	if (n < 0)
		return -errno;
	buf[n] = '\0';
	return n;
}

/* Field 22 of /proc/<pid>/stat, counted from the last bracket: the name before it
 * may hold anything. */
static int start_ticks(pid_t pid, uint64_t *ticks)
{
	char path[64], buf[1024], *p;

	snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
	if (read_small(AT_FDCWD, path, buf, sizeof buf) <= 0)
		return -ESRCH;
	p = strrchr(buf, ')');
	for (int field = 2; p && field < 22; field++)
		p = strchr(p + 1, ' ');
	if (!p)
		return -EINVAL;
	*ticks = strtoull(p, NULL, 10);
	return 0;
}

/* The runtime has made the container: who is its first process? We are its parent
 * now, so that its pid stays its own until we have waited for it. */
int child_created(struct conmon *m)
{
	char buf[32];
	long pid;
	int r;

	if (read_small(m->dir, pid_file, buf, sizeof buf) <= 0 || (pid = strtol(buf, NULL, 10)) <= 1 || pid > INT_MAX)
		return -EINVAL;
	m->init = (pid_t)pid;
	if ((r = start_ticks(m->init, &m->start_ticks)) < 0)
		return r;
	m->init_pidfd = (int)syscall(SYS_pidfd_open, m->init, 0U);
	if (m->init_pidfd < 0)
		return -errno;
	counter_open(&m->container_oom, m->opt.oom_file);
	counter_open(&m->pod_oom, m->opt.pod_oom_file);
	return 0;
}

/* The "msg" of the last line of the runtime's JSON log, with the escapes of JSON that
 * runtimes use undone. */
static bool logged_message(struct conmon *m, char *out, size_t size)
{
	char buf[MAX_MESSAGE], *p, *last = NULL;
	size_t n = 0;

	if (read_tail(m->dir, oci_log, buf, sizeof buf) <= 0)
		return false;
	for (char *line = buf, *next; line && *line; line = next) {
		next = strchr(line, '\n');
		if (next)
			*next++ = '\0';
		p = strstr(line, "\"msg\"");
		if (p && (strstr(line, "\"level\":\"error\"") || strstr(line, "\"level\":\"fatal\"") || !last))
			last = p;
	}
	if (!last || !(p = strchr(last + strlen("\"msg\""), '"')))
		return false;
	for (p++; *p && *p != '"' && n + 1 < size; p++) {
		if (*p == '\\' && p[1])
			p++, out[n++] = *p == 'n' || *p == 't' ? ' ' : *p;
		else
			out[n++] = *p;
	}
	out[n] = '\0';
	return n > 0;
}

/* Fills failure with the runtime's own words: its log, or what it left on stderr. */
void child_failure_text(struct conmon *m, const char *stage, int status)
{
	char text[MAX_TEXT - 128];
	ssize_t n;

	if (!logged_message(m, text, sizeof text)) {
		n = m->streams[1].fd >= 0 ? read(m->streams[1].fd, text, sizeof text - 1) : 0;
		text[n > 0 ? n : 0] = '\0';
	}
	if (WIFEXITED(status) && WEXITSTATUS(status) == 127 && !text[0])
		snprintf(text, sizeof text, "%s cannot be executed", m->opt.runtime);
	if (WIFSIGNALED(status))
		snprintf(m->failure, sizeof m->failure, "runtime %s was killed by signal %d: %s", stage,
			 WTERMSIG(status), text);
	else
		snprintf(m->failure, sizeof m->failure, "runtime %s: %s", stage, text[0] ? text : "no reason given");
}

/* The runtime connects once and sends the master. */
int child_console(struct conmon *m)
{
	char byte[64], control[CMSG_SPACE(sizeof(int))];
	struct iovec v = { byte, sizeof byte };
	struct msghdr msg = {
		.msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control
	};
	struct cmsghdr *c;
	cleanup_close int conn = accept4(m->console, NULL, NULL, SOCK_CLOEXEC);
	int fd;

	if (conn < 0)
		return errno == EAGAIN ? 0 : -errno;
	if (recvmsg(conn, &msg, MSG_CMSG_CLOEXEC) < 0)
		return -errno;
	c = CMSG_FIRSTHDR(&msg);
	if (!c || c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS || c->cmsg_len < CMSG_LEN(sizeof(int)))
		return -EPROTO;
	memcpy(&fd, CMSG_DATA(c), sizeof fd);
	close_fd(&m->console);
	if (unlinkat(m->dir, console_socket, 0) < 0 && errno != ENOENT)
		return -errno;
	m->streams[0].fd = fd;
	child_resize(m);
	return nonblocking(fd);
}

/* The last size asked for is kept for a terminal that does not exist yet. */
void child_resize(struct conmon *m)
{
	struct winsize w = { .ws_row = m->rows, .ws_col = m->cols };

	if (m->streams[0].fd >= 0 && (m->rows || m->cols))
		(void)ioctl(m->streams[0].fd, TIOCSWINSZ, &w);
}
