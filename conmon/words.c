/* Why a runtime failed, in its own words: its log, or what it printed. */
#define _GNU_SOURCE
#include "conmon.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/wait.h>

int words_take(struct conmon *m, int fd)
{
	char buf[MAX_WORDS];
	ssize_t n = read(fd, buf, sizeof buf);
	size_t more, excess;

	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	if (n == 0)
		return -EPIPE;
	for (ssize_t i = 0; i < n; i++)
		if (!buf[i])
			buf[i] = ' ';
	/* The last bytes, one less than there is room: a string. */
	more = (size_t)n < sizeof m->words - 1 ? (size_t)n : sizeof m->words - 1;
	excess = m->words_len + more > sizeof m->words - 1 ? m->words_len + more - (sizeof m->words - 1) : 0;
	memmove(m->words, m->words + excess, m->words_len - excess);
	memcpy(m->words + m->words_len - excess, buf + n - more, more);
	m->words_len += more - excess;
	m->words[m->words_len] = '\0';
	return 1;
}

/* The end of a file, as a string. */
static ssize_t read_tail(int dir, const char *name, char *buf, size_t size)
{
	cleanup_close int fd = openat(dir, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	off_t end = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);
	ssize_t n;

	if (end < 0)
		return -errno;
	n = pread(fd, buf, size - 1, end > (off_t)size - 1 ? end - ((off_t)size - 1) : 0);
	if (n < 0)
		return -errno;
	buf[n] = '\0';
	return n;
}

/* The C library's strstr is a kilobyte. */
static char *find(char *in, const char *what)
{
	size_t n = strlen(what);

	for (; *in; in++)
		if (strncmp(in, what, n) == 0)
			return in;
	return NULL;
}

/* The "msg" of the last error in a runtime's JSON log, or of its last line, with the
 * escapes of JSON that runtimes use undone. Changes the log. */
bool words_message(char *log, char *out, size_t size)
{
	char *p, *last = NULL;
	size_t n = 0;

	for (char *line = log, *next; line && *line; line = next) {
		next = strchr(line, '\n');
		if (next)
			*next++ = '\0';
		p = find(line, "\"msg\"");
		if (p && (find(line, "\"level\":\"error\"") || find(line, "\"level\":\"fatal\"") || !last))
			last = p;
	}
	if (!last || !(p = strchr(last + strlen("\"msg\""), '"')))
		return false;
	for (p++; *p && *p != '"' && n + 1 < size; p++) {
		if (*p == '\\' && p[1])
			p++, out[n++] = *p == 'n' || *p == 't' ? ' ' : *p;
		else
			out[n++] = *p;
	}
	out[n] = '\0';
	return n > 0;
}

void words_failure(struct conmon *m, const char *stage, int status)
{
	struct text t = text_in(m->failure, sizeof m->failure);
	char message[MAX_TEXT - 128];
	const char *text = m->words;

	if (read_tail(m->dir, "oci-log", m->scratch, MAX_MESSAGE) > 0 &&
	    words_message(m->scratch, message, sizeof message))
		text = message;
	text_put(&t, "runtime ");
	text_put(&t, stage);
	if (WIFSIGNALED(status)) {
		text_put(&t, " was killed by signal ");
		text_number(&t, WTERMSIG(status));
	}
	text_put(&t, ": ");
	if (text[0]) {
		text_put(&t, text);
	} else if (WIFEXITED(status) && WEXITSTATUS(status) == 127) {
		text_put(&t, m->opt.runtime);
		text_put(&t, " cannot be executed");
	} else {
		text_put(&t, "no reason given");
	}
}

int words_verdict(struct conmon *m, int status)
{
	static const char key[] = "\"exitStatus\":";
	const char *p = find(m->words, key);
	uint64_t code;

	if (status == 0 && p && parse_number(p + sizeof key - 1, &p, &code) == 0 && code <= 255 &&
	    strcmp(p, "}\n") == 0)
		return (int)code;
	words_failure(m, "wait", status);
	return 255;
}
