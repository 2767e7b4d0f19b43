/* The fuzz target of what conmon reads from others: the container's output, packets
 * of clients, the words of a runtime. With clang it is libFuzzer's
 * (-fsanitize=fuzzer); otherwise `fuzz SEED COUNT` makes its own inputs and `fuzz
 * FILE...` replays some. A violated promise aborts. */
#define _GNU_SOURCE
#include "conmon.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>

enum { CONTENT = 1 << 18, STAMP_NS = 123456789 };

struct bytes {
	const uint8_t *at;
	size_t left;
};

static unsigned take(struct bytes *b)
{
	if (!b->left)
		return 0;
	b->left--;
	return *b->at++;
}

static uint64_t input_seed;

static void promise(bool kept, const char *what)
{
	if (kept)
		return;
	fprintf(stderr, "broken: %s (input of seed %llu)\n", what, (unsigned long long)input_seed);
	abort();
}

/* A byte above 127 is a run, so that short inputs make long lines. */
static size_t expand(struct bytes *b, char *out)
{
	size_t n = 0;

	while (b->left) {
		unsigned c = take(b);
		size_t run = c > 127 ? (c & 127) * 257U : 1;

		if (n + run > CONTENT)
			break;
		memset(out + n, c > 127 ? 'r' : (int)c, run);
		n += run;
	}
	return n;
}

/* What the log must be, made one byte after the other. */
static size_t reference(const char *content, size_t n, const char *header, char *out)
{
	size_t len = 0, at = 0;

	while (at < n) {
		const char *newline = memchr(content + at, '\n', n - at);
		size_t line = newline ? (size_t)(newline - content) - at : n - at;
		size_t part = line > LINE_MAX_BYTES ? LINE_MAX_BYTES : line;

		len += (size_t)sprintf(out + len, "%s%c ", header, part < line ? 'P' : 'F');
		memcpy(out + len, content + at, part);
		len += part;
		out[len++] = '\n';
		at += part + (part == line);
	}
	return len;
}

static const char header_text[] = "1970-01-01T00:00:00.123456789Z stdout ";

/* Feeds the content in pieces as reads would bring it. The disk is full in between,
 * where limits says so. Returns how many pieces there were. */
static void feed(struct conmon *m, const char *content, size_t n, struct bytes *choices)
{
	struct stream *s = &m->streams[0];
	struct rlimit limit = { RLIM_INFINITY, RLIM_INFINITY };

	for (size_t at = 0, part; at < n; at += part) {
		unsigned choice = choices->left ? take(choices) : 160;

		part = choice < 128 ? choice + 1 : (choice - 127) * 128U;
		part = part < n - at ? part : n - at;
		limit.rlim_cur = take(choices) == 255 ? (rlim_t)m->log.size + take(choices) * 16U : RLIM_INFINITY;
		promise(setrlimit(RLIMIT_FSIZE, &limit) == 0, "setrlimit");
		promise(s->len <= LINE_MAX_BYTES, "no more than a line is kept");
		memcpy(s->buf + s->len, content + at, part);
		s->len += part;
		log_stamp(&m->log, s->name, STAMP_NS);
		stream_frame(s, &m->log);
		promise(m->log.out_len == 0, "nothing stays in the batch");
	}
	limit.rlim_cur = RLIM_INFINITY;
	promise(setrlimit(RLIMIT_FSIZE, &limit) == 0, "setrlimit");
	if (s->len) {
		/* As stream_flush, but with a time that is known. */
		s->buf[s->len++] = '\n';
		log_stamp(&m->log, s->name, STAMP_NS);
		stream_frame(s, &m->log);
	}
}

/* Every record of got is one of all, in their order. */
static bool is_subsequence(const char *got, size_t n, const char *all, size_t all_n)
{
	for (size_t at = 0, in = 0, len; at < n; at += len) {
		len = (size_t)((const char *)memchr(got + at, '\n', n - at) - (got + at)) + 1;
		for (;;) {
			size_t other;

			if (in >= all_n)
				return false;
			other = (size_t)((const char *)memchr(all + in, '\n', all_n - in) - (all + in)) + 1;
			in += other;
			if (other == len && memcmp(all + in - other, got + at, len) == 0)
				break;
		}
	}
	return true;
}

static void fuzz_framing(struct conmon *m, struct bytes *b)
{
	static char content[CONTENT], want[3 * CONTENT + CONTENT * sizeof header_text], got[sizeof want];
	struct bytes choices = { b->at, b->left / 4 };
	size_t n, want_n, got_n;
	uint64_t bytes = 0;
	ssize_t r;

	b->at += choices.left;
	b->left -= choices.left;
	n = expand(b, content);
	want_n = reference(content, n, header_text, want);
	for (size_t i = 0; i < n; i++)
		bytes += content[i] != '\n';
	m->log.path = "fuzz";
	m->log.fd = memfd_create("log", MFD_CLOEXEC);
	promise(m->log.fd >= 0 && fcntl(m->log.fd, F_SETFL, O_APPEND) == 0, "memfd");
	feed(m, content, n, &choices);
	r = pread(m->log.fd, got, sizeof got, 0);
	promise(r >= 0, "read");
	got_n = (size_t)r;
	close_fd(&m->log.fd);
	if (m->log.dropped == 0)
		promise(got_n == want_n && memcmp(got, want, want_n) == 0, "the log is the output");
	promise(got_n == 0 || got[got_n - 1] == '\n', "the last record is whole");
	promise(is_subsequence(got, got_n, want, want_n), "no record is made up");
}

/* One connected client; its other end is returned. */
static int connected(struct conmon *m)
{
	int fds[2];

	promise(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) == 0, "socketpair");
	client_add(m, fds[0], false);
	return fds[1];
}

static void one_packet(struct conmon *m, struct bytes *b, int peer, struct client *c)
{
	unsigned n = take(b) % 48, expected;
	unsigned char sent[48], reply[HEADER + MAX_PAYLOAD];
	ssize_t r;

	for (unsigned i = 0; i < n; i++)
		sent[i] = (unsigned char)take(b);
	/* Most packets would end at their header. */
	if (n >= HEADER && take(b) % 4) {
		sent[0] = 1;
		sent[1] = sent[1] % 12;
		sent[2] = sent[3] = 0;
	}
	if (n >= HEADER + 4 && sent[1] == 6 && take(b) % 4) {
		n = HEADER + 4;
		sent[HEADER] %= 8;
		memset(sent + HEADER + 1, 0, 3);
	}
	if (attach_paused(m, c))
		return;
	memcpy(m->scratch, sent, n);
	proto_answer(m, c, n);
	expected = n >= 2 ? (unsigned char)(sent[1] | 0x80) : 0x80;
	r = recv(peer, reply, sizeof reply, MSG_DONTWAIT);
	if (r < 0) {
		promise(c->fd < 0 || attach_paused(m, c) || m->input.closed, "every request has a reply");
		return;
	}
	promise(r >= REPLY_HEADER, "a reply has an errno");
	if (reply[1] == expected)
		promise(n < HEADER || memcmp(reply + 4, sent + 4, 4) == 0, "a reply has its request's number");
	while (recv(peer, reply, sizeof reply, MSG_DONTWAIT) > 0)
		;
}

static void fuzz_protocol(struct conmon *m, struct bytes *b)
{
	int in[2], peers[4];
	unsigned options = take(b);

	promise(pipe2(in, O_CLOEXEC | O_NONBLOCK) == 0, "pipe");
	m->input.fd = in[1];
	m->state = (enum state)(take(b) % (STATE_UNDOING + 1));
	m->opt.tty = options & 1;
	m->opt.use_stdin = options & 2;
	m->opt.stdin_once = options & 4;
	for (size_t i = 0; i < 4; i++)
		peers[i] = connected(m);
	while (b->left) {
		unsigned what = take(b);
		size_t i = what % 4, attached = 0;
		char drain[256];

		switch (what / 16) {
		case 0: close_fd(&peers[i]); break;
		case 1: attach_output(m, &m->streams[what % 2], header_text, sizeof header_text); break;
		case 2: attach_feed(m); break;
		case 3:
			if (read(in[0], drain, sizeof drain) < 0)
				promise(errno == EAGAIN, "read");
			break;
		case 4: client_drop(m, &m->clients[i]); break;
		default:
			if (peers[i] >= 0 && m->clients[i].fd >= 0)
				one_packet(m, b, peers[i], &m->clients[i]);
		}
		for (size_t j = 0; j < m->n_clients; j++)
			attached += m->clients[j].attached;
		promise(attached == m->n_attached, "attached clients are counted");
	}
	attach_output_end(m);
	promise(m->input.len == 0, "no input is left at the end");
	close_fd(&in[0]);
	for (size_t i = 0; i < 4; i++) {
		close_fd(&peers[i]);
		client_drop(m, &m->clients[i]);
	}
}

/* The time is what the C library makes of it. */
static void fuzz_stamp(struct conmon *m, struct bytes *b)
{
	char want[64];
	int64_t ns = 0;
	time_t seconds;
	struct tm tm;

	for (size_t i = 0; i < sizeof ns; i++)
		ns = (int64_t)((uint64_t)ns << 8 | take(b));
	ns &= INT64_MAX;
	seconds = (time_t)(ns / 1000000000);
	promise(gmtime_r(&seconds, &tm) && strftime(want, sizeof want, "%Y-%m-%dT%H:%M:%S", &tm) == 19, "gmtime");
	sprintf(want + 19, ".%09dZ stderr F ", (int)(ns % 1000000000));
	log_stamp(&m->log, "stderr", ns);
	promise(m->log.header_len == strlen(want) && memcmp(m->log.header, want, strlen(want)) == 0,
		"the time is right");
}

static void fuzz_words(struct conmon *m, struct bytes *b)
{
	char log[4096], message[24], record[MAX_MESSAGE];
	size_t n = b->left < sizeof log - 1 ? b->left : sizeof log - 1, lines = 0, len;

	memcpy(log, b->at, n);
	log[n] = '\0';
	memcpy(m->failure, log, n < sizeof m->failure - 1 ? n : sizeof m->failure - 1);
	if (words_message(log, message, sizeof message))
		promise(strlen(message) < sizeof message && message[0], "a message is a string");
	fuzz_stamp(m, b);
	m->opt.id = "fuzz";
	len = record_format(m, record, sizeof record);
	promise(len > 0 && record[len - 1] == '\n', "a record is whole");
	for (size_t i = 0; i < len; i++) {
		promise(record[i] == '\n' || (unsigned char)record[i] >= ' ', "no control byte in a record");
		lines += record[i] == '\n';
	}
	promise(lines == 11 + (m->failure[0] != '\0'), "a record has its lines");
	memcpy(m->words, log, n < sizeof m->words - 1 ? n : sizeof m->words - 1);
	m->failure[0] = '\0';
	promise(words_verdict(m, 0) == 255 || !m->failure[0], "an exit code is known, or why it is not");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct conmon m;
	struct bytes b = { data, size };
	struct buffers *buffers = m.buffers;

	if (buffers && munmap(buffers, sizeof *buffers) < 0)
		abort();
	memset(&m, 0, sizeof m);
	promise(conmon_init(&m) == 0, "init");
	switch (take(&b) % 3) {
	case 0: fuzz_framing(&m, &b); break;
	case 1: fuzz_protocol(&m, &b); break;
	default: fuzz_words(&m, &b);
	}
	return 0;
}

#ifndef LIBFUZZER
static uint64_t next(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

/* Bytes that matter come more often than others. */
static size_t make_input(uint64_t *seed, uint8_t *out, size_t size)
{
	static const uint8_t often[] = { '\n', '\n', 0, 1, 255, '"', '\\', 128 + 63, 128 + 64, 'x' };
	static const char *const words[] = { "\"msg\":\"", "\"level\":\"error\"", "\",", "\\n", "\n" };
	size_t n = next(seed) % size, at = 0;

	while (at < n) {
		uint64_t r = next(seed);
		const char *word = words[r / 16 % (sizeof words / sizeof *words)];

		if (r % 16 == 0 && at + strlen(word) < n) {
			memcpy(out + at, word, strlen(word));
			at += strlen(word);
		} else {
			out[at++] = r % 4 ? (uint8_t)(r >> 32) : often[(r >> 32) % sizeof often];
		}
	}
	return n;
}

int main(int argc, char **argv)
{
	static uint8_t input[1 << 16];
	uint64_t seed = argc == 3 ? strtoull(argv[1], NULL, 10) * 2 + 1 : 0;
	long count = argc == 3 ? strtol(argv[2], NULL, 10) : 0;

	if (signal(SIGXFSZ, SIG_IGN) == SIG_ERR)
		return 2;
	for (int i = 1; count == 0 && i < argc; i++) {
		cleanup_close int fd = open(argv[i], O_RDONLY | O_CLOEXEC);
		ssize_t n = fd < 0 ? -1 : read(fd, input, sizeof input);

		if (n < 0) {
			perror(argv[i]);
			return 2;
		}
		LLVMFuzzerTestOneInput(input, (size_t)n);
	}
	for (long i = 0; i < count; i++) {
		size_t n;

		input_seed = seed;
		n = make_input(&seed, input, i % 8 ? 300 : 4000);
		LLVMFuzzerTestOneInput(input, n);
	}
	return 0;
}
#endif
