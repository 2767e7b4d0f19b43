/* The sockets in the run directory, and the table of who is connected. Nobody is ever
 * waited for: a client whose queue is full is dropped. */
#define _GNU_SOURCE
#include "conmon.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>

int sock_listen(struct conmon *m, const char *name, int type)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	cleanup_close int fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	mode_t mask;
	int r;

	if (fd < 0)
		return -errno;
	memcpy(a.sun_path, name, strlen(name) + 1);
	if (unlinkat(m->dir, name, 0) < 0 && errno != ENOENT)
		return -errno;
	if (fchdir(m->dir) < 0)
		return -errno;
	mask = umask(0177);
	r = bind(fd, (struct sockaddr *)&a, sizeof a) < 0 ? -errno : 0;
	umask(mask);
	if (r == 0 && (listen(fd, MAX_CLIENTS) < 0 || chdir("/") < 0))
		r = -errno;
	if (r < 0)
		return r;
	r = fd;
	fd = -1;
	return r;
}

void client_add(struct conmon *m, int fd, bool hello)
{
	size_t i = 0;

	if (m->n_clients == MAX_CLIENTS)
		attach_sweep(m);
	while (i < m->n_clients && m->clients[i].fd >= 0)
		i++;
	if (i == MAX_CLIENTS) {
		close(fd); /* the table is full: the newcomer loses */
		return;
	}
	m->clients[i] = (struct client){ .fd = fd, .hello = hello };
	if (i == m->n_clients)
		m->n_clients++;
}

void client_drop(struct conmon *m, struct client *c)
{
	close_fd(&c->fd);
	attach_leave(m, c);
}

void sock_accept(struct conmon *m)
{
	int fd = accept4(m->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	struct ucred peer;
	socklen_t len = sizeof peer;

	if (fd < 0) {
		/* Whoever knocks goes on knocking, and would keep the loop turning. */
		if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
			m->deaf_until = now_ms() + DEAF_MS;
		return;
	}
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0 || peer.uid != 0) {
		close(fd);
		return;
	}
	client_add(m, fd, false);
}

void client_send(struct conmon *m, struct client *c, struct part head, struct part payload)
{
	struct iovec v[] = {
		{ (char *)(uintptr_t)head.at, head.n },
		{ (char *)(uintptr_t)payload.at, payload.n },
	};
	struct msghdr msg = { .msg_iov = v, .msg_iovlen = 2 };

	if (c->fd < 0 || c->mute || sendmsg(c->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0)
		return;
	if (errno == EPIPE || errno == ECONNRESET)
		c->mute = true;
	else
		client_drop(m, c);
}
