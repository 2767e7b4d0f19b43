/* Attached clients: they get the container's output as it comes, and may give it
 * input. Output never waits: a client that has not taken ATTACH_QUEUE bytes of it is
 * dropped. Input does: its clients are not read while the container does not read. */
#define _GNU_SOURCE
#include "conmon.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

int attach(struct conmon *m, struct client *c, const char *payload, size_t n)
{
	unsigned streams = n == 4 ? (unsigned char)payload[0] : 0;
	int queue = ATTACH_QUEUE;

	if (!streams || streams > (ATTACH_STDIN | ATTACH_STDOUT | ATTACH_STDERR) || payload[1] || payload[2] ||
	    payload[3])
		return EINVAL;
	if (c->hello || c->attached)
		return EBUSY;
	if (is_over(m))
		return ESRCH;
	if (streams & ATTACH_STDIN && !m->opt.use_stdin)
		return EBADF;
	if (m->n_attached == MAX_ATTACHED)
		attach_sweep(m);
	if (m->n_attached == MAX_ATTACHED)
		return EUSERS;
	/* Without the capability for more, the system's limit is what a client may lag. */
	if (setsockopt(c->fd, SOL_SOCKET, SO_SNDBUFFORCE, &queue, sizeof queue) < 0 &&
	    setsockopt(c->fd, SOL_SOCKET, SO_SNDBUF, &queue, sizeof queue) < 0)
		return errno;
	c->attached = true;
	c->streams = (uint8_t)streams;
	m->n_attached++;
	return 0;
}

/* Who waits for its input's turn is not polled, and so its end is not seen. Those that
 * have gone and have left nothing to deliver make room for others. */
void attach_sweep(struct conmon *m)
{
	for (size_t i = 0; i < m->n_clients; i++) {
		struct client *c = &m->clients[i];
		char byte;
		ssize_t n;

		if (c->fd < 0 || !attach_paused(m, c))
			continue;
		n = recv(c->fd, &byte, sizeof byte, MSG_PEEK | MSG_DONTWAIT);
		if (n < 0 && errno == ECONNRESET) /* told once; what it said comes after it */
			n = recv(c->fd, &byte, sizeof byte, MSG_PEEK | MSG_DONTWAIT);
		if (n == 0)
			client_drop(m, c);
	}
}

int attach_input_fd(const struct conmon *m)
{
	if (m->input.closed)
		return -1;
	return m->opt.tty ? m->streams[0].fd : m->input.fd;
}

/* All that was taken has been delivered, or never can be. */
static void input_done(struct conmon *m, int error)
{
	struct client *from = m->input.from;

	m->input.len = m->input.at = 0;
	m->input.from = NULL;
	m->input.closed = m->input.closed || m->input.last;
	if (m->input.closed)
		close_fd(&m->input.fd);
	if (from)
		proto_reply(m, from, INPUT, m->input.seq, error);
}

void attach_feed(struct conmon *m)
{
	struct input *in = &m->input;
	int fd = attach_input_fd(m);

	if (fd < 0)
		return; /* the terminal is still to come */
	while (in->at < in->len) {
		ssize_t n = write(fd, in->buf + in->at, in->len - in->at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return;
		if (n < 0) {
			/* It does not read any more: it has closed its stdin. */
			in->closed = true;
			input_done(m, EPIPE);
			return;
		}
		in->at += (size_t)n;
	}
	input_done(m, 0);
}

int attach_input(struct conmon *m, struct client *c, uint32_t seq, const char *payload, size_t n)
{
	struct input *in = &m->input;

	if (!(c->streams & ATTACH_STDIN))
		return EINVAL;
	if (in->closed)
		return EPIPE;
	if (n == 0)
		return 0;
	memcpy(in->buf, payload, n);
	in->len = n;
	in->from = c;
	in->seq = seq;
	m->used = true;
	attach_feed(m);
	return -1;
}

bool attach_paused(const struct conmon *m, const struct client *c) { return m->input.len && c->streams & ATTACH_STDIN; }

/* The end of one client's input is that of the container's only with stdin_once. A
 * terminal has no half to close: it just takes nothing from then on. */
static void leave_stdin(struct conmon *m, struct client *c)
{
	if (!(c->streams & ATTACH_STDIN))
		return;
	c->streams &= ATTACH_STDOUT | ATTACH_STDERR;
	if (!m->opt.stdin_once)
		return;
	m->input.last = true;
	if (!m->input.len)
		input_done(m, 0);
}

int attach_input_end(struct conmon *m, struct client *c, size_t n)
{
	if (n || !(c->streams & ATTACH_STDIN))
		return EINVAL;
	leave_stdin(m, c);
	return 0;
}

void attach_leave(struct conmon *m, struct client *c)
{
	if (!c->attached)
		return;
	if (m->input.from == c)
		m->input.from = NULL; /* what it gave is delivered all the same */
	leave_stdin(m, c);
	c->attached = false;
	c->streams = 0;
	m->n_attached--;
}

void attach_output(struct conmon *m, const struct stream *s, const char *data, size_t n)
{
	char head[HEADER + 1];

	proto_header(head, PUSH_OUTPUT, 0);
	head[HEADER] = s->attach == ATTACH_STDOUT ? 1 : 2;
	for (size_t i = 0; i < m->n_clients; i++) {
		struct client *c = &m->clients[i];

		for (size_t at = 0, part; c->streams & s->attach && at < n; at += part) {
			part = n - at < MAX_PAYLOAD - 1 ? n - at : MAX_PAYLOAD - 1;
			client_send(m, c, (struct part){ head, sizeof head }, (struct part){ data + at, part });
		}
	}
}

void attach_output_end(struct conmon *m)
{
	char head[HEADER];

	m->input.closed = true;
	input_done(m, EPIPE);
	proto_header(head, PUSH_OUTPUT_END, 0);
	for (size_t i = 0; i < m->n_clients; i++)
		if (m->clients[i].attached)
			client_send(m, &m->clients[i], (struct part){ head, sizeof head }, (struct part){ 0 });
}
