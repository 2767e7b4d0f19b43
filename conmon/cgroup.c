/* Control groups: joining, killing, and the counter of OOM kills. */
#define _GNU_SOURCE
#include "conmon.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
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

/* Sends SIGKILL to every process that the open cgroup.procs lists. */
static int kill_listed(int fd)
{
	char buf[4096];
	size_t len = 0;
	int found = 0;

	for (;;) {
		ssize_t n = read(fd, buf + len, sizeof buf - 1 - len);
		char *line = buf, *end;

		if (n < 0)
			return -errno;
		if (n == 0)
			return found;
		len += (size_t)n;
		buf[len] = '\0';
		while ((end = strchr(line, '\n'))) {
			pid_t pid = (pid_t)strtol(line, NULL, 10);

			/* Listed by its own cgroup, now: the pid cannot be another's. */
			if (pid > 1 && kill(pid, SIGKILL) == 0)
				found++;
			line = end + 1;
		}
		len -= (size_t)(line - buf);
		memmove(buf, line, len);
	}
}

struct dirent64_head {
	uint64_t ino;
	int64_t off;
	uint16_t reclen;
	uint8_t type;
	char name[];
};

/* v1 has no cgroup.kill: every group of the tree is read, inner ones first. The
 * depth bounds the recursion; the kernel's own limit is far above what containers use. */
static int kill_tree(int dir, int depth)
{
	char buf[1024] __attribute__((aligned(8)));
	int found = 0, r;
	cleanup_close int procs = -1;

	for (;;) {
		long n = syscall(SYS_getdents64, dir, buf, sizeof buf);

		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		for (long at = 0; at < n;) {
			struct dirent64_head *e = (struct dirent64_head *)(void *)(buf + at);

			at += e->reclen;
			if (e->type != DT_DIR || e->name[0] == '.' || depth == 0)
				continue;
			cleanup_close int sub = openat(dir, e->name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
			if (sub >= 0 && (r = kill_tree(sub, depth - 1)) > 0)
				found += r;
		}
	}
	procs = openat(dir, "cgroup.procs", O_RDONLY | O_CLOEXEC);
	if (procs < 0)
		return -errno;
	r = kill_listed(procs);
	return r < 0 ? r : found + r;
}

int cgroup_kill(const char *path)
{
	cleanup_close int dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (dir < 0)
		return errno == ENOENT ? 0 : -errno;
	if (write_file(dir, "cgroup.kill", "1") == 0)
		return 0;
	return kill_tree(dir, 8);
}

/* Both files have a line "oom_kill N" (cgroup-v2.rst, memory.events; cgroup-v1
 * memory.rst, memory.oom_control). Returns false when it cannot be read, as when
 * the group is gone: then the last value stands. */
static bool read_count(int fd, uint64_t *count)
{
	char buf[512], *p;
	ssize_t n = pread(fd, buf, sizeof buf - 1, 0);

	if (n <= 0)
		return false;
	buf[n] = '\0';
	p = strstr(buf, "oom_kill ");
	if (!p || (p != buf && p[-1] != '\n'))
		return false;
	*count = strtoull(p + strlen("oom_kill "), NULL, 10);
	return true;
}

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
	if (!read_count(c->fd, &c->base))
		close_fd(&c->fd);
	c->last = c->base;
}

void counter_read(struct counter *c)
{
	if (c->fd >= 0 && !read_count(c->fd, &c->last))
		close_fd(&c->fd);
}
