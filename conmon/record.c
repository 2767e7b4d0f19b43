/* The exit record: text, one "key value" a line, on tmpfs beside the bundle. */
#define _GNU_SOURCE
#include "conmon.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

/* Keeps text on one line: a backslash doubled, control bytes as \\xHH. */
static void escape(char *out, size_t size, const char *text)
{
	size_t n = 0;

	for (; *text && n + 5 < size; text++) {
		unsigned char c = (unsigned char)*text;

		if (c == '\\') {
			out[n++] = '\\';
			out[n++] = '\\';
		} else if (c < ' ' || c == 0x7f) {
			snprintf(out + n, 5, "\\x%02x", c);
			n += 4;
		} else {
			out[n++] = (char)c;
		}
	}
	out[n] = '\0';
}

size_t record_format(struct conmon *m, char *out, size_t size)
{
	int code = 128, sig = 0, n;
	char message[MAX_TEXT];

	if (m->init_gone && WIFEXITED(m->init_status)) {
		code = WEXITSTATUS(m->init_status);
	} else if (m->init_gone && WIFSIGNALED(m->init_status)) {
		sig = WTERMSIG(m->init_status);
		code = 128 + sig;
	}
	n = snprintf(out, size,
		     "crio-exit 1\nid %s\npid %d\nstart_ns %" PRId64 "\nend_ns %" PRId64
		     "\ncode %d\nsignal %d\noom %d\n"
		     "log_written_bytes %" PRIu64 "\nlog_dropped_bytes %" PRIu64 "\nfailed %d\n",
		     m->opt.id, (int)m->init, m->start_ns, m->end_ns, code, sig, m->oom, m->log.written, m->log.dropped,
		     m->failure[0] != '\0');
	if (n < 0 || (size_t)n >= size)
		return 0;
	if (m->failure[0]) {
		int more;

		escape(message, sizeof message, m->failure);
		more = snprintf(out + n, size - (size_t)n, "message %s\n", message);
		if (more > 0 && (size_t)(n + more) < size)
			n += more;
	}
	return (size_t)n;
}

/* New, then renamed: a reader finds the whole record or none. */
int record_write(struct conmon *m)
{
	cleanup_close int fd = -1;
	size_t done = 0;

	m->record_len = record_format(m, m->record, sizeof m->record);
	fd = openat(m->dir, "exit.new", O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	while (done < m->record_len) {
		ssize_t n = write(fd, m->record + done, m->record_len - done);

		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0)
			done += (size_t)n;
	}
	return renameat(m->dir, "exit.new", m->dir, "exit") < 0 ? -errno : 0;
}
