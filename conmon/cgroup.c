/* Control groups: joining, killing, and the counter of OOM kills. */
#define _GNU_SOURCE
#include "conmon.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>

static int write_file(int dir, const char *name, const char *text)
{
	cleanup_close int fd = openat(dir, name, O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	return write(fd, text, strlen(text)) < 0 ? -errno : 0;
}

int cgroup_join(const char *procs_file) { return write_file(AT_FDCWD, procs_file, "0"); }

/* Finds "name N" at the begin of a line of a small file of the kernel's. Returns
 * false when it cannot be read, as when the group is gone. */
static bool read_key(int fd, const char *name, uint64_t *value)
{
	char buf[512];
	size_t len = strlen(name);
	ssize_t n = pread(fd, buf, sizeof buf - 1, 0);

	if (n <= 0)
		return false;
	buf[n] = '\0';
	for (const char *line = buf; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (strncmp(line, name, len) == 0 && line[len] == ' ')
			return parse_number(line + len + 1, NULL, value) == 0;
	}
	return false;
}

/* Sends SIGKILL to every process that the open cgroup.procs lists. One of them, the
 * last that lives, becomes the witness: the others die at about the same time, and
 * whoever does not is found again. Returns whether one lives. */
static bool kill_listed(int fd, struct witness *w)
{
	char buf[2048], *line;
	size_t len = 0;
	bool lives = false;
	ssize_t n;

	while ((n = read(fd, buf + len, sizeof buf - 1 - len)) > 0) {
		const char *end;
		uint64_t pid;

		len += (size_t)n;
		buf[len] = '\0';
		for (line = buf; strchr(line, '\n'); line = strchr(line, '\n') + 1) {
			int pidfd;

			/* Listed by its own cgroup, now: the pid cannot be another's. 0 is of
			 * another PID namespace. */
			if (parse_number(line, &end, &pid) < 0 || pid <= 1 || kill((pid_t)pid, SIGKILL) < 0)
				continue;
			pidfd = (int)syscall(SYS_pidfd_open, (pid_t)pid, 0U);
			if (pidfd < 0 && errno == ESRCH)
				continue;
			lives = true;
			close_fd(&w->fd);
			*w = (struct witness){ .fd = pidfd, .events = POLLIN };
		}
		len -= (size_t)(line - buf);
		memmove(buf, line, len);
	}
	return lives;
}

enum { MAX_DEPTH = 40 };

struct dirent64_head {
	uint64_t ino;
	int64_t off;
	uint16_t reclen;
	uint8_t type;
	char name[];
};

/* After an open that failed: nobody lives in what does not exist. With any other
 * reason, of ours, somebody may. */
static bool is_gone(void) { return errno == ENOENT || errno == ENODEV; }

/* v1 has no cgroup.kill: every group of the tree is read, inner ones first. The
 * depth bounds the recursion; the kernel's own limit is far above what containers use. */
static bool kill_tree(int dir, struct witness *w, int depth)
{
	char buf[1024] __attribute__((aligned(8)));
	bool lives = false;
	cleanup_close int procs = -1;
	long n;

	while ((n = syscall(SYS_getdents64, dir, buf, sizeof buf)) > 0) {
		for (long at = 0; at < n;) {
			struct dirent64_head *e = (struct dirent64_head *)(void *)(buf + at);

			at += e->reclen;
			if (e->type != DT_DIR || e->name[0] == '.')
				continue;
			if (depth == 0)
				return true; /* deeper than we look */
			cleanup_close int sub = openat(dir, e->name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
			if (sub < 0 ? !is_gone() : kill_tree(sub, w, depth - 1))
				lives = true;
		}
	}
	procs = openat(dir, "cgroup.procs", O_RDONLY | O_CLOEXEC);
	return (procs < 0 ? !is_gone() : kill_listed(procs, w)) || lives;
}

int cgroup_kill(const char *path, struct witness *w)
{
	cleanup_close int dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	uint64_t populated;
	int events;

	if (dir < 0)
		return !is_gone();
	if (write_file(dir, "cgroup.kill", "1") < 0)
		return kill_tree(dir, w, MAX_DEPTH);
	events = openat(dir, "cgroup.events", O_RDONLY | O_CLOEXEC);
	if (events < 0)
		return !is_gone();
	if (!read_key(events, "populated", &populated) || populated == 0) {
		close_fd(&events);
		return 0;
	}
	close_fd(&w->fd);
	*w = (struct witness){ .fd = events, .events = POLLPRI };
	return 1;
}

/* memory.events of v2 and memory.oom_control of v1 both have a line "oom_kill N". */
void counter_open(struct counter *c, const char *file)
{
	const char *base;

	if (!file)
		return;
	c->fd = open(file, O_RDONLY | O_CLOEXEC);
	if (c->fd < 0)
		return;
	base = strrchr(file, '/');
	c->pollable = base && strcmp(base, "/memory.events") == 0;
	if (!counter_read(c))
		return;
	c->base = c->last;
}

bool counter_read(struct counter *c)
{
	if (c->fd >= 0 && !read_key(c->fd, "oom_kill", &c->last))
		close_fd(&c->fd);
	return c->fd >= 0;
}
