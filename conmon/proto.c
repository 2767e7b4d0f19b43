/* The protocol of PROTOCOL.md over SOCK_SEQPACKET: a packet is a message. Nobody is
 * ever waited for: a client whose queue is full is dropped. */
#define _GNU_SOURCE
#include "conmon.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>

enum {
	VERSION = 1,
	HEADER = 8,
	REPLY_HEADER = HEADER + 4,
	STATUS_BYTES = 32,
	HELLO = 1,
	REOPEN = 2,
	RESIZE = 3,
	KILL = 4,
	STATUS = 5,
	ACK_EXIT = 7,
	REPLY = 0x80,
	STARTED = 0x40,
	FAILED = 0x41,
	EXIT = 0x42,
};

static const char *const socket_name = "ctl";

/* Little-endian, whatever the machine. */
static void put(char *out, uint64_t v, size_t n)
{
	for (size_t i = 0; i < n; i++)
		out[i] = (char)(v >> (8 * i));
}

static uint64_t get(const char *in, size_t n)
{
	uint64_t v = 0;

	for (size_t i = 0; i < n; i++)
		v |= (uint64_t)(unsigned char)in[i] << (8 * i);
	return v;
}

static void header(char *out, int type, uint32_t seq)
{
	memset(out, 0, HEADER);
	out[0] = VERSION;
	out[1] = (char)type;
	put(out + 4, seq, 4);
}

/* Binds in the run directory by a relative name, since its path may be too long. */
int proto_listen(struct conmon *m)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	cleanup_close int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	mode_t mask;
	int r;

	if (fd < 0)
		return -errno;
	strcpy(a.sun_path, socket_name);
	if (unlinkat(m->dir, socket_name, 0) < 0 && errno != ENOENT)
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
	m->listener = fd;
	fd = -1;
	return 0;
}

void proto_add(struct conmon *m, int fd, bool hello)
{
	for (size_t i = 0; i < MAX_CLIENTS; i++) {
		if (m->clients[i].fd < 0) {
			m->clients[i] = (struct client){ .fd = fd, .hello = hello };
			return;
		}
	}
	close(fd); /* the table is full: the newcomer loses */
}

void proto_drop(struct client *c) { close_fd(&c->fd); }

void proto_accept(struct conmon *m)
{
	int fd = accept4(m->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	struct ucred peer;
	socklen_t len = sizeof peer;

	if (fd < 0)
		return;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0 || peer.uid != 0) {
		close(fd);
		return;
	}
	proto_add(m, fd, false);
}

static void send_to(struct client *c, const char *message, size_t n)
{
	if (c->fd >= 0 && send(c->fd, message, n, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
		proto_drop(c);
}

static void push_to(struct client *c, int type, const char *payload, size_t n)
{
	char message[HEADER + MAX_MESSAGE];

	header(message, type, 0);
	memcpy(message + HEADER, payload, n);
	send_to(c, message, HEADER + n);
}

static void push(struct conmon *m, int type, const char *payload, size_t n)
{
	for (size_t i = 0; i < MAX_CLIENTS; i++)
		if (m->clients[i].hello)
			push_to(&m->clients[i], type, payload, n);
}

static size_t status(const struct conmon *m, char *out)
{
	enum state s = m->state;

	/* The two that lead somewhere look like what was before, or comes. */
	if (s == STATE_ENDING)
		s = STATE_RUNNING;
	if (s == STATE_UNDOING)
		s = STATE_CREATING;
	put(out, s, 4);
	put(out + 4, (uint32_t)m->init, 4);
	put(out + 8, m->start_ticks, 8);
	put(out + 16, (uint64_t)m->start_ns, 8);
	put(out + 24, m->log.dropped, 8);
	return STATUS_BYTES;
}

void proto_push_started(struct conmon *m)
{
	char payload[STATUS_BYTES];

	push(m, STARTED, payload, status(m, payload));
}

void proto_push_failed(struct conmon *m) { push(m, FAILED, m->failure, strlen(m->failure)); }

void proto_push_exit(struct conmon *m) { push(m, EXIT, m->record, m->record_len); }

bool proto_all_acked(const struct conmon *m)
{
	for (size_t i = 0; i < MAX_CLIENTS; i++)
		if (m->clients[i].fd >= 0 && m->clients[i].hello && !m->clients[i].acked)
			return false;
	return true;
}

/* To the first process, of which we are the parent. While the runtime still makes
 * it, SIGKILL is for the runtime, and anything else has no one to go to yet. */
static int kill_init(struct conmon *m, int sig)
{
	if (sig < 1 || sig > 64)
		return EINVAL;
	if (m->init_gone || m->state == STATE_EXITED || m->state == STATE_FAILED)
		return ESRCH;
	if (m->init_pidfd < 0) {
		if (sig != SIGKILL)
			return EAGAIN;
		return m->runtime > 0 && kill(m->runtime, SIGKILL) == 0 ? 0 : ESRCH;
	}
	return syscall(SYS_pidfd_send_signal, m->init_pidfd, sig, NULL, 0U) < 0 ? errno : 0;
}

static int resize(struct conmon *m, const char *payload)
{
	if (!m->opt.tty)
		return ENOTTY;
	m->rows = (uint16_t)get(payload, 2);
	m->cols = (uint16_t)get(payload + 2, 2);
	child_resize(m);
	return 0;
}

/* What a request gets: its errno, and for some a payload behind it. */
static int answer(struct conmon *m, struct client *c, int type, const char *payload, size_t n)
{
	switch (type) {
	case HELLO:
	case STATUS: c->hello = c->hello || type == HELLO; return n ? EINVAL : 0;
	case REOPEN: return n ? EINVAL : -log_reopen(&m->log);
	case RESIZE: return n == 4 ? resize(m, payload) : EINVAL;
	case KILL: return n == 4 ? kill_init(m, (int)(int32_t)get(payload, 4)) : EINVAL;
	case ACK_EXIT:
		c->acked = true;
		m->told = m->told || m->state == STATE_EXITED || m->state == STATE_FAILED;
		return n ? EINVAL : 0;
	default: return ENOSYS;
	}
}

size_t proto_answer(struct conmon *m, struct client *c, const char *in, size_t n, char *out)
{
	int type = n >= 2 ? (unsigned char)in[1] : 0, r;
	size_t len = REPLY_HEADER;

	if (n < HEADER || in[2] || in[3])
		r = EINVAL;
	else if (in[0] != VERSION)
		r = EPROTONOSUPPORT;
	else
		r = answer(m, c, type, in + HEADER, n - HEADER);
	header(out, type | REPLY, n >= HEADER ? (uint32_t)get(in + 4, 4) : 0);
	put(out + HEADER, (uint32_t)r, 4);
	if (r == 0 && (type == HELLO || type == STATUS))
		len += status(m, out + REPLY_HEADER);
	return len;
}

void proto_request(struct conmon *m, struct client *c)
{
	char out[REPLY_HEADER + STATUS_BYTES];
	ssize_t n = recv(c->fd, m->scratch, sizeof m->scratch, MSG_DONTWAIT | MSG_TRUNC);
	bool hello = c->hello;

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		proto_drop(c);
		return;
	}
	if ((size_t)n > sizeof m->scratch)
		n = 0; /* cut: malformed */
	send_to(c, out, proto_answer(m, c, m->scratch, (size_t)n, out));
	/* Whoever comes after the end is told at once: there will be no other occasion. */
	if (c->hello && !hello && m->state == STATE_EXITED)
		push_to(c, EXIT, m->record, m->record_len);
	else if (c->hello && !hello && m->state == STATE_FAILED)
		push_to(c, FAILED, m->failure, strlen(m->failure));
}
