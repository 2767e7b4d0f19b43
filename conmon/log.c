/* The CRI log: "TIME STREAM TAG CONTENT\n" (kubelet's log format). A record is
 * written whole or not at all, so that no reader sees a torn one, whatever happens
 * to the disk or to the file under us. */
#define _GNU_SOURCE
#include "conmon.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

int64_t now_ns(int clock)
{
	struct timespec t;

	if (clock_gettime(clock, &t) < 0)
		return 0;
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Opens a regular file only, and follows no link in the last part: what stands
 * there may have been put there by a container that shares the directory. */
static int open_regular(const char *path)
{
	struct stat st;
	int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0640);

	if (fd < 0)
		return -errno;
	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
		close(fd);
		return -EINVAL;
	}
	return fd;
}

int log_open(struct logfile *l)
{
	struct stat st;
	int fd;

	if (!l->path)
		return 0;
	fd = open_regular(l->path);
	if (fd < 0)
		return fd;
	l->fd = fd;
	l->torn = false;
	l->size = fstat(fd, &st) == 0 ? st.st_size : 0;
	return 0;
}

/* The new file is open before the old one is given up; on failure nothing changes. */
int log_reopen(struct logfile *l)
{
	int old = l->fd, r;

	if (!l->path)
		return 0;
	r = log_open(l);
	if (r < 0)
		return r;
	if (old >= 0)
		close(old);
	return 0;
}

/* RFC3339 with nanoseconds, in UTC; the tag follows and is filled in by each record. */
void log_stamp(struct logfile *l, const char *stream, int64_t ns)
{
	struct tm tm;
	time_t seconds = (time_t)(ns / 1000000000);
	int n;

	if (!gmtime_r(&seconds, &tm))
		memset(&tm, 0, sizeof tm);
	n = snprintf(l->header, sizeof l->header, "%04d-%02d-%02dT%02d:%02d:%02d.%09dZ %s ", tm.tm_year + 1900,
		     tm.tm_mon + 1, tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec, (int)(ns % 1000000000), stream);
	l->header_len = n > 0 ? (size_t)n : 0;
}

/* Bytes of the container in n bytes of records: all but the headers and, as the
 * newline may be ours, one byte a record. */
static uint64_t payload(const struct logfile *l, const char *records, size_t n)
{
	uint64_t count = 0;
	const char *end = records + n;

	for (const char *p = records; (p = memchr(p, '\n', (size_t)(end - p))); p++)
		count++;
	return n > count * (l->header_len + 3) ? n - count * (l->header_len + 3) : 0;
}

/* After a failed write the file may end inside a record: cut it back to the last
 * whole one. done bytes of out were taken by the file. Returns the whole ones' length. */
static size_t cut_back(struct logfile *l, size_t done)
{
	const char *last = done ? memrchr(l->out, '\n', done) : NULL;
	size_t whole = last ? (size_t)(last - l->out) + 1 : 0;

	if (whole < done) {
		off_t end = lseek(l->fd, 0, SEEK_END);

		if (end < 0 || ftruncate(l->fd, end - (off_t)(done - whole)) < 0)
			l->torn = true; /* the next record must at least begin a line */
	}
	return whole;
}

void log_flush(struct logfile *l)
{
	size_t done = 0;

	if (!l->out_len)
		return;
	if (l->fd < 0) {
		if (l->path)
			l->dropped += payload(l, l->out, l->out_len);
		l->out_len = 0;
		return;
	}
	if (l->torn && write(l->fd, "\n", 1) == 1)
		l->torn = false;
	while (done < l->out_len) {
		ssize_t n = write(l->fd, l->out + done, l->out_len - done);

		if (n > 0) {
			done += (size_t)n;
			continue;
		}
		if (n < 0 && errno == EINTR)
			continue;
		done = cut_back(l, done);
		l->dropped += payload(l, l->out + done, l->out_len - done);
		break;
	}
	l->size += (int64_t)done;
	l->written += payload(l, l->out, done);
	l->out_len = 0;
}

static void record(struct logfile *l, char tag, const char *content, size_t n)
{
	size_t need = l->header_len + n + 3;
	char *p;

	if (l->out_len + need > sizeof l->out)
		log_flush(l);
	/* Emptied between two records only, and before the limit is passed. */
	if (l->size_max > 0 && l->size + (int64_t)(l->out_len + need) > l->size_max) {
		log_flush(l);
		if (l->size > 0 && ftruncate(l->fd, 0) == 0)
			l->size = 0;
	}
	p = l->out + l->out_len;
	memcpy(p, l->header, l->header_len);
	p += l->header_len;
	*p++ = tag;
	*p++ = ' ';
	memcpy(p, content, n);
	p += n;
	*p++ = '\n';
	l->out_len = (size_t)(p - l->out);
}

/* Cuts the buffer into records. A line is kept until its newline comes or it has
 * outgrown a record: one read's end is no reason for a partial record. */
void stream_frame(struct stream *s, struct logfile *l)
{
	size_t start = 0, from = s->scanned;

	for (;;) {
		char *newline = memchr(s->buf + from, '\n', s->len - from);
		size_t end = newline ? (size_t)(newline - s->buf) : s->len;

		while (end - start > LINE_MAX_BYTES) {
			record(l, 'P', s->buf + start, LINE_MAX_BYTES);
			start += LINE_MAX_BYTES;
		}
		if (!newline)
			break;
		record(l, 'F', s->buf + start, end - start);
		start = from = end + 1;
	}
	s->len -= start;
	if (start && s->len)
		memmove(s->buf, s->buf + start, s->len);
	s->scanned = s->len;
}

int stream_read(struct stream *s, struct logfile *l)
{
	ssize_t n = read(s->fd, s->buf + s->len, sizeof s->buf - s->len);

	if (n < 0)
		/* EIO is how a pty says that its other side is closed. */
		return errno == EAGAIN || errno == EINTR ? 1 : 0;
	if (n == 0)
		return 0;
	s->len += (size_t)n;
	log_stamp(l, s->name, now_ns(CLOCK_REALTIME));
	stream_frame(s, l);
	log_flush(l);
	return 1;
}

void stream_flush(struct stream *s, struct logfile *l)
{
	if (!s->len)
		return;
	log_stamp(l, s->name, now_ns(CLOCK_REALTIME));
	record(l, 'F', s->buf, s->len);
	log_flush(l);
	s->len = s->scanned = 0;
}
