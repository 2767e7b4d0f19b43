/* The OCI runtime's commands, and what is learned of the container's first process. */
#define _GNU_SOURCE
#include "conmon.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>

extern char **environ;

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
	struct text log = text_in(m->scratch, SCRATCH_BYTES);
	size_t n = 0;
	pid_t pid;

	text_put(&log, m->opt.run_dir);
	text_put(&log, "/oci-log");
	if (log.cut)
		return -ENAMETOOLONG;
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
	m->words_len = 0;
	m->words[0] = '\0';

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

/* Runs one whose stdout, and stderr if that is wanted, are words for us alone. */
static int spawn_apart(struct conmon *m, const char *const *tail, bool with_stderr)
{
	cleanup_close int out = -1;
	int r = make_pipe(&m->words_fd, &out);

	if (r < 0 || (r = make_nonblocking(m->words_fd)) < 0)
		return r;
	return spawn(m, tail, (int[3]){ m->devnull, out, with_stderr ? out : m->devnull });
}

int make_nonblocking(int fd)
{
	int on = 1;

	return ioctl(fd, FIONBIO, &on) < 0 ? -errno : 0;
}

int make_pipe(int *reader, int *writer)
{
	int fds[2];

	if (pipe2(fds, O_CLOEXEC) < 0)
		return -errno;
	close_fd(reader);
	*reader = fds[0];
	*writer = fds[1];
	return 0;
}

void child_close_stdio(struct conmon *m)
{
	for (size_t i = 0; i < 3; i++)
		close_fd(&m->stdio[i]);
}

/* Runs one that gives the container its input and output. */
static int spawn_inside(struct conmon *m, const char *const *tail)
{
	return spawn(m, tail, (int[3]){ m->stdio[0] >= 0 ? m->stdio[0] : m->devnull, m->stdio[1], m->stdio[2] });
}

int child_create(struct conmon *m)
{
	char pid_path[1024];
	struct text t = text_in(pid_path, sizeof pid_path);
	/* Whole, since crun leaves its directory for "/" where it makes devices for a user namespace. */
	const char *tail[] = {
		"create", "--bundle", m->opt.run_dir, "--pid-file", pid_path, m->opt.id, NULL, NULL, NULL
	};
	int *in = &m->stdio[0], *out = &m->stdio[1], *err = &m->stdio[2];
	int r;

	text_put(&t, m->opt.run_dir);
	text_put(&t, "/");
	text_put(&t, pid_file);
	if (t.cut)
		return -ENAMETOOLONG;

	if (unlinkat(m->dir, pid_file, 0) < 0 && errno != ENOENT)
		return -errno;
	/* The words of an earlier attempt are not this one's. */
	if (unlinkat(m->dir, "oci-log", 0) < 0 && errno != ENOENT)
		return -errno;
	if (m->opt.tty) {
		tail[5] = "--console-socket";
		tail[6] = console_socket;
		tail[7] = m->opt.id;
		m->console = sock_listen(m, console_socket, SOCK_STREAM);
		return m->console < 0 ? m->console : spawn_apart(m, tail, true);
	}
	if (m->opt.use_stdin && ((r = make_pipe(in, &m->input.fd)) < 0 || (r = make_nonblocking(m->input.fd)) < 0))
		return r;
	if ((r = make_pipe(&m->streams[0].fd, out)) < 0 || (r = make_pipe(&m->streams[1].fd, err)) < 0)
		return r;
	if ((r = make_nonblocking(m->streams[0].fd)) < 0 || (r = make_nonblocking(m->streams[1].fd)) < 0)
		return r;
	/* For who opens /dev/stdout: the runtime has no say over our pipes in a user namespace. */
	if ((*in >= 0 && fchown(*in, m->opt.stdio_uid, m->opt.stdio_gid) < 0) ||
	    fchown(*out, m->opt.stdio_uid, m->opt.stdio_gid) < 0 ||
	    fchown(*err, m->opt.stdio_uid, m->opt.stdio_gid) < 0)
		return -errno;
	r = spawn_inside(m, tail);
	if (!m->opt.sandboxed)
		child_close_stdio(m);
	return r;
}

/* It is start that hands a container's input and output to its sandbox. Of its own
 * words there is the log then. */
int child_start(struct conmon *m)
{
	const char *tail[] = { "start", m->opt.id, NULL };
	int r;

	if (m->stdio[1] < 0)
		return spawn_apart(m, tail, true);
	r = spawn_inside(m, tail);
	child_close_stdio(m);
	return r;
}

int child_wait(struct conmon *m)
{
	const char *tail[] = { "wait", m->opt.id, NULL };

	return spawn_apart(m, tail, false);
}

int child_delete(struct conmon *m)
{
	const char *tail[] = { "delete", "--force", m->opt.id, NULL };

	return spawn(m, tail, (int[3]){ m->devnull, m->devnull, m->devnull });
}

/* Reads a small file into buf as a string. */
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

/* Field 22 of /proc/<pid>/stat, counted from the last bracket: the name before it
 * may hold anything. */
static int start_ticks(pid_t pid, uint64_t *ticks)
{
	char path[32], buf[1024], *p;
	struct text t = text_in(path, sizeof path);

	text_put(&t, "/proc/");
	text_number(&t, pid);
	text_put(&t, "/stat");
	if (read_small(AT_FDCWD, path, buf, sizeof buf) <= 0)
		return -ESRCH;
	p = strrchr(buf, ')');
	for (int field = 2; p && field < 22; field++)
		p = strchr(p + 1, ' ');
	return p ? parse_number(p + 1, NULL, ticks) : -EINVAL;
}

/* The runtime has made the container: who is its first process? We are its parent
 * now, so that its pid stays its own until we have waited for it. */
int child_created(struct conmon *m)
{
	char buf[32];
	uint64_t pid;
	int r;

	if (m->opt.sandboxed)
		return 0; /* the file names the sandbox: not ours, and others live in it */
	if (read_small(m->dir, pid_file, buf, sizeof buf) <= 0 || parse_number(buf, NULL, &pid) < 0 || pid <= 1 ||
	    pid > INT_MAX)
		return -EINVAL;
	m->init = (pid_t)pid;
	if ((r = start_ticks(m->init, &m->start_ticks)) < 0)
		return r;
	m->init_pidfd = (int)syscall(SYS_pidfd_open, m->init, 0U);
	/* Without pidfds, as under valgrind, SIGCHLD and our being the parent do. */
	if (m->init_pidfd < 0 && errno != ENOSYS)
		return -errno;
	counter_open(&m->container_oom, m->opt.oom_file);
	counter_open(&m->pod_oom, m->opt.pod_oom_file);
	return 0;
}

/* Whether init has ended and nobody has waited for it. */
bool child_ended(const struct conmon *m)
{
	siginfo_t info = { 0 };

	return m->init && waitid(P_PID, (id_t)m->init, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid;
}

int child_signal(const struct conmon *m, int sig)
{
	long r = m->init_pidfd >= 0 ? syscall(SYS_pidfd_send_signal, m->init_pidfd, sig, NULL, 0U) : kill(m->init, sig);

	return r < 0 ? -errno : 0;
}

/* The terminal's master has come. We hold its other side too, or it would hang up
 * for good whenever no process of the container has it open for a while. */
static int take_terminal(struct conmon *m, int fd)
{
	struct termios attributes;

	m->streams[0].fd = fd;
	if (tcgetattr(fd, &attributes) < 0)
		return -errno;
	m->tty_peer = ioctl(fd, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
	child_resize(m);
	return make_nonblocking(fd);
}

/* The runtime has connected once and sent the master; it has ended, so that nothing
 * is waited for. */
int child_console(struct conmon *m)
{
	char byte[64], control[CMSG_SPACE(sizeof(int))];
	struct iovec v = { byte, sizeof byte };
	struct msghdr msg = {
		.msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control
	};
	struct cmsghdr *c;
	cleanup_close int conn = accept4(m->console, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	int fd;

	close_fd(&m->console);
	if (unlinkat(m->dir, console_socket, 0) < 0 && errno != ENOENT)
		return -errno;
	if (conn < 0)
		return errno == EAGAIN ? -ENOTTY : -errno;
	if (recvmsg(conn, &msg, MSG_CMSG_CLOEXEC) < 0)
		return errno == EAGAIN ? -ENOTTY : -errno;
	c = CMSG_FIRSTHDR(&msg);
	if (!c || c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS || c->cmsg_len < CMSG_LEN(sizeof(int)))
		return -ENOTTY;
	memcpy(&fd, CMSG_DATA(c), sizeof fd);
	return take_terminal(m, fd);
}

/* The last size asked for is kept for a terminal that does not exist yet. */
void child_resize(struct conmon *m)
{
	struct winsize w = { .ws_row = m->rows, .ws_col = m->cols };

	if (m->streams[0].fd >= 0 && m->sized)
		(void)ioctl(m->streams[0].fd, TIOCSWINSZ, &w);
}
