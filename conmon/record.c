/* The exit record: text, one "key value" a line, on tmpfs beside the bundle. */
#define _GNU_SOURCE
#include "conmon.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/wait.h>

/* Keeps text on one line: a backslash doubled, control bytes as \\xHH. */
static void put_escaped(struct text *t, const char *text)
{
	static const char hex[] = "0123456789abcdef";

	for (; *text && t->end - t->at > 6; text++) {
		unsigned char c = (unsigned char)*text;

		if (c == '\\')
			text_put(t, "\\\\");
		else if (c < ' ' || c == 0x7f)
			text_put(t, (char[]){ '\\', 'x', hex[c >> 4], hex[c & 15], '\0' });
		else
			text_put(t, (char[]){ (char)c, '\0' });
	}
}

size_t record_format(struct conmon *m, char *out, size_t size)
{
	struct text t = text_in(out, size);
	int code = 128, sig = 0;

	/* A process that the runtime made and that never became the container is not one. */
	if (m->state != STATE_FAILED && m->init_gone) {
		sig = WIFSIGNALED(m->init_status) ? WTERMSIG(m->init_status) : 0;
		code = sig ? 128 + sig : WEXITSTATUS(m->init_status);
	}
	text_put(&t, "crio-exit 1\nid ");
	text_put(&t, m->opt.id);
	text_put(&t, "\n");
	text_entry(&t, "pid", m->init);
	text_entry(&t, "start_ns", m->start_ns);
	text_entry(&t, "end_ns", m->end_ns);
	text_entry(&t, "code", code);
	text_entry(&t, "signal", sig);
	text_entry(&t, "oom", m->oom);
	text_entry(&t, "log_written_bytes", (int64_t)m->log.written);
	text_entry(&t, "log_dropped_bytes", (int64_t)m->log.dropped);
	text_entry(&t, "failed", m->state == STATE_FAILED);
	if (m->failure[0]) {
		text_put(&t, "message ");
		put_escaped(&t, m->failure);
		text_put(&t, "\n");
	}
	return t.cut ? 0 : (size_t)(t.at - out);
}

/* New, then renamed: a reader finds the whole record or none. */
int record_write(struct conmon *m)
{
	cleanup_close int fd = -1;
	size_t done = 0;

	m->record_len = record_format(m, m->buffers->record, sizeof m->buffers->record);
	fd = openat(m->dir, "exit.new", O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	while (done < m->record_len) {
		ssize_t n = write(fd, m->buffers->record + done, m->record_len - done);

		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0)
			done += (size_t)n;
	}
	return renameat(m->dir, "exit.new", m->dir, "exit") < 0 ? -errno : 0;
}
