/* The protocol of PROTOCOL.md: requests and their replies, and what is told unasked. */
#define _GNU_SOURCE
#include "conmon.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>

enum {
	VERSION = 1,
	HELLO = 1,
	REOPEN = 2,
	RESIZE = 3,
	KILL = 4,
	STATUS = 5,
	ATTACH = 6,
	ACK_EXIT = 7,
	REPLY = 0x80,
	STARTED = 0x40,
	FAILED = 0x41,
	EXIT = 0x42,
};

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

void proto_header(char *out, int type, uint32_t seq)
{
	memset(out, 0, HEADER);
	out[0] = VERSION;
	out[1] = (char)type;
	put(out + 4, seq, 4);
}

static void push_to(struct conmon *m, struct client *c, int type, const char *payload, size_t n)
{
	char head[HEADER];

	proto_header(head, type, 0);
	client_send(m, c, (struct part){ head, sizeof head }, (struct part){ payload, n });
}

static void push(struct conmon *m, int type, const char *payload, size_t n)
{
	for (size_t i = 0; i < m->n_clients; i++)
		if (m->clients[i].hello)
			push_to(m, &m->clients[i], type, payload, n);
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

void proto_push_exit(struct conmon *m) { push(m, EXIT, m->buffers->record, m->record_len); }

bool proto_all_acked(const struct conmon *m)
{
	for (size_t i = 0; i < m->n_clients; i++)
		if (m->clients[i].fd >= 0 && m->clients[i].hello && !m->clients[i].acked && !m->clients[i].mute)
			return false;
	return true;
}

/* To the first process, of which we are the parent. While the runtime still makes
 * it, SIGKILL is for the runtime, and anything else has no one to go to yet. */
static int kill_init(struct conmon *m, int sig)
{
	if (sig < 1 || sig > 64)
		return EINVAL;
	if (m->state == STATE_CREATING && m->runtime > 0) {
		if (sig != SIGKILL)
			return EAGAIN;
		return kill(m->runtime, SIGKILL) < 0 ? errno : 0;
	}
	if (!m->init || m->init_gone || is_over(m))
		return ESRCH;
	return -child_signal(m, sig);
}

static int resize(struct conmon *m, const char *payload)
{
	if (!m->opt.tty)
		return ENOTTY;
	m->sized = true;
	m->rows = (uint16_t)get(payload, 2);
	m->cols = (uint16_t)get(payload + 2, 2);
	child_resize(m);
	return 0;
}

static int subscribe(struct conmon *m, struct client *c)
{
	/* Attached clients may be dropped; the daemon would take that for our death. */
	if (c->attached)
		return EBUSY;
	if (c->hello)
		return 0;
	c->hello = true;
	return is_over(m) ? -1 : 0;
}

/* After the end was told nobody waits for a new log, and CRI wants none made. */
static int reopen(struct conmon *m)
{
	if (is_over(m))
		return ESRCH;
	return -log_reopen(&m->log);
}

/* Returns an errno, or -1 when the reply has its own place and time. */
static int answer(struct conmon *m, struct client *c, int type, const char *payload, size_t n)
{
	switch (type) {
	case HELLO: return n ? EINVAL : subscribe(m, c);
	case STATUS: return n ? EINVAL : 0;
	case REOPEN: return n ? EINVAL : reopen(m);
	case RESIZE: return n == 4 ? resize(m, payload) : EINVAL;
	case KILL: return n == 4 ? kill_init(m, (int)(int32_t)get(payload, 4)) : EINVAL;
	case ATTACH: return attach(m, c, payload, n);
	case INPUT: return attach_input(m, c, (uint32_t)get(payload - 4, 4), payload, n);
	case INPUT_END: return attach_input_end(m, c, n);
	case ACK_EXIT:
		if (n)
			return EINVAL;
		c->acked = true;
		m->told = m->told || is_over(m);
		return 0;
	default: return ENOSYS;
	}
}

void proto_reply(struct conmon *m, struct client *c, int type, uint32_t seq, int error)
{
	char out[REPLY_HEADER + STATUS_BYTES];
	size_t len = REPLY_HEADER;

	proto_header(out, type | REPLY, seq);
	put(out + HEADER, (uint32_t)error, 4);
	if (error == 0 && (type == HELLO || type == STATUS))
		len += status(m, out + REPLY_HEADER);
	client_send(m, c, (struct part){ out, len }, (struct part){ 0 });
}

void proto_answer(struct conmon *m, struct client *c, size_t n)
{
	const char *in = m->scratch;
	int type = n >= 2 ? (unsigned char)in[1] : 0, error;
	uint32_t seq = n >= HEADER ? (uint32_t)get(in + 4, 4) : 0;

	if (n < HEADER || in[2] || in[3])
		error = EINVAL;
	else if (in[0] != VERSION)
		error = EPROTONOSUPPORT;
	else
		error = answer(m, c, type, in + HEADER, n - HEADER);
	if (error >= 0) {
		proto_reply(m, c, type, seq, error);
		return;
	}
	if (type != HELLO)
		return;
	/* Whoever comes after the end is told at once: there will be no other occasion. */
	proto_reply(m, c, type, seq, 0);
	if (m->state == STATE_EXITED)
		push_to(m, c, EXIT, m->buffers->record, m->record_len);
	else
		push_to(m, c, FAILED, m->failure, strlen(m->failure));
}

void proto_request(struct conmon *m, struct client *c)
{
	ssize_t n;

	if (c->fd < 0 || attach_paused(m, c))
		return;
	n = recv(c->fd, m->scratch, HEADER + MAX_PAYLOAD, MSG_DONTWAIT | MSG_TRUNC);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n < 0 && errno == ECONNRESET) {
		/* It has gone without reading all that we said. What it said is still there. */
		c->mute = true;
		return;
	}
	if (n <= 0)
		client_drop(m, c);
	else
		proto_answer(m, c, (size_t)n > HEADER + MAX_PAYLOAD ? 0 : (size_t)n); /* cut: malformed */
}
