/* The CRI log: "TIME STREAM TAG CONTENT\n" (kubelet's log format). A record is
 * written whole or not at all, so that no reader sees a torn one, whatever happens
 * to the disk or to the file under us. */
#define _GNU_SOURCE
#include "conmon.h"

#ifdef __SSE2__
#include <emmintrin.h>
#endif
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/syscall.h>
#include <time.h>

#ifndef SYS_openat2
#define SYS_openat2 437
#endif

enum {
	RESOLVE_NO_SYMLINKS = 4, /* openat2(2) */
	TAG = 2, /* the header ends in a tag and a blank */
	/* Content from here on is written from where it lies. Below, a copy costs less
	 * than the kernel's work on one more vector. */
	WRITE_IN_PLACE = 2048,
};

/* Opens a regular file only, and follows no link on the way: what stands there may have
 * been put there by a container that shares the directory. The daemon has resolved the
 * links that are the node's own. */
static int open_regular(const char *path)
{
	const struct {
		uint64_t flags, mode, resolve;
	} how = {
		.flags = O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC,
		.mode = 0640,
		.resolve = RESOLVE_NO_SYMLINKS,
	};
	struct stat st;
	int fd = (int)syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof how);

	if (fd < 0 && errno == ENOSYS) /* valgrind has it not; the last part at least is no link */
		fd = open(path, (int)how.flags, (mode_t)how.mode);
	if (fd < 0)
		return -errno;
	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
		close(fd);
		return -EINVAL;
	}
	return fd;
}

static bool same_file(int a, int b)
{
	struct stat x, y;

	return a >= 0 && fstat(a, &x) == 0 && fstat(b, &y) == 0 && x.st_ino == y.st_ino && x.st_dev == y.st_dev;
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
	if (!same_file(l->fd, fd))
		l->torn = false;
	l->fd = fd;
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

/* The date of a day since the epoch, "YYYY-MM-DD". Years are counted from March, so
 * that a leap day is the last of its year, in eras of 400 of them. The C library's
 * gmtime_r is right as well, but brings the rules of all time zones with it. */
static void put_date(struct text *t, uint64_t day)
{
	uint64_t since = day + 719468; /* days from 0000-03-01 to the epoch */
	uint64_t era = since / 146097, of_era = since % 146097;
	uint64_t year = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
	uint64_t of_year = of_era - (365 * year + year / 4 - year / 100);
	uint64_t month = (5 * of_year + 2) / 153; /* March is 0; five months have 153 days */

	text_digits(t, era * 400 + year + (month >= 10), 4);
	text_put(t, "-");
	text_digits(t, month < 10 ? month + 3 : month - 9, 2);
	text_put(t, "-");
	text_digits(t, of_year - (153 * month + 2) / 5 + 1, 2);
}

/* RFC3339 with nanoseconds, in UTC. */
void log_stamp(struct logfile *l, const char *stream, int64_t ns)
{
	struct text t = text_in(l->header, sizeof l->header);
	uint64_t seconds = ns > 0 ? (uint64_t)ns / 1000000000 : 0;

	put_date(&t, seconds / 86400);
	text_put(&t, "T");
	text_digits(&t, seconds / 3600 % 24, 2);
	text_put(&t, ":");
	text_digits(&t, seconds / 60 % 60, 2);
	text_put(&t, ":");
	text_digits(&t, seconds % 60, 2);
	text_put(&t, ".");
	text_digits(&t, ns > 0 ? (uint64_t)ns % 1000000000 : 0, 9);
	text_put(&t, "Z ");
	text_put(&t, stream);
	text_put(&t, " F ");
	l->header_len = (size_t)(t.at - l->header);
}

/* Bytes of the container in n bytes of records: all but the headers and, as the
 * newline may be ours, one byte a record. */
static uint64_t content_of(const struct logfile *l, const char *records, size_t n)
{
	uint64_t count = 0;
	const char *end = records + n;

	for (const char *p = records; (p = memchr(p, '\n', (size_t)(end - p))); p++)
		count++;
	return n - count * (l->header_len + 1);
}

/* After a failed write the file may end inside a record: cut it back to whole ones. */
static void take_back(struct logfile *l, size_t torn)
{
	off_t end = torn ? lseek(l->fd, 0, SEEK_END) : 0;

	if (torn && (end < 0 || ftruncate(l->fd, end - (off_t)torn) < 0))
		l->torn = true; /* the next record must at least begin a line */
}

/* Writes all of v, which it changes. Returns how much the file took. */
static size_t write_all(int fd, struct iovec *v, int parts)
{
	size_t done = 0;

	while (parts > 0) {
		ssize_t n = writev(fd, v, parts);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		done += (size_t)n;
		for (; parts > 0 && (size_t)n >= v->iov_len; v++, parts--)
			n -= (ssize_t)v->iov_len;
		if (parts > 0) {
			v->iov_base = (char *)v->iov_base + n;
			v->iov_len -= (size_t)n;
		}
	}
	return done;
}

/* Counts what the file took. In one that has lost its name nobody will read it. */
static void count(struct logfile *l, uint64_t content, uint64_t dropped)
{
	struct stat st;

	if (fstat(l->fd, &st) == 0) {
		l->size = st.st_size;
		if (st.st_nlink == 0)
			dropped = content;
	}
	l->written += content - dropped;
	l->dropped += dropped;
}

/* Writes what is in out and, behind it, one record whose content is not. */
static void flush_with(struct logfile *l, const char *content, size_t n)
{
	char newline = '\n';
	struct iovec v[] = {
		{ l->out, l->out_len },
		{ l->header, l->header_len },
		{ (char *)(uintptr_t)content, n },
		{ &newline, 1 },
	};
	size_t batch = l->out_len, total = batch + (content ? l->header_len + n + 1 : 0), done;
	uint64_t all = l->batched + (content ? n : 0), dropped = 0;

	l->spread = l->spread || batch > PAGE;
	l->out_len = 0;
	l->batched = 0;
	if (!total)
		return;
	if (l->fd < 0) {
		l->dropped += l->path ? all : 0;
		return;
	}
	if (l->torn && write(l->fd, "\n", 1) == 1)
		l->torn = false;
	done = l->torn ? 0 : write_all(l->fd, v, content ? 4 : 1);
	if (done < total) {
		const char *last = done && done < batch ? memrchr(l->out, '\n', done) : NULL;
		size_t whole = done >= batch ? batch : last ? (size_t)(last - l->out) + 1 : 0;

		take_back(l, done - whole);
		dropped = all - content_of(l, l->out, whole);
	}
	count(l, all, dropped);
}

static void log_flush(struct logfile *l) { flush_with(l, NULL, 0); }

/* Whole vectors, up to SLACK - 1 bytes more than n on both sides: a library's memcpy
 * takes longer to begin than most lines are. Returns where the copy ends. */
static inline char *copy(char *to, const char *from, size_t n)
{
	for (size_t i = 0; i < n; i += SLACK)
		__builtin_memcpy(to + i, from + i, SLACK);
	return to + n;
}

#ifdef __SSE2__
/* memchr, at the speed of the lines: musl's goes by words. Looks at up to SLACK - 1
 * bytes behind the end. */
static const char *find_newline(const char *from, const char *end)
{
	const __m128i newlines = _mm_set1_epi8('\n');

	for (const char *p = from; p < end; p += SLACK) {
		__m128i equal = _mm_cmpeq_epi8(_mm_loadu_si128((const __m128i *)(const void *)p), newlines);
		unsigned mask = (unsigned)_mm_movemask_epi8(equal);

		if (mask) {
			p += __builtin_ctz(mask);
			return p < end ? p : NULL;
		}
	}
	return NULL;
}
#else
static const char *find_newline(const char *from, const char *end) { return memchr(from, '\n', (size_t)(end - from)); }
#endif

static void record(struct logfile *l, char tag, const char *content, size_t n)
{
	size_t need = l->header_len + n + 1;
	char *p;

	/* Emptied between two records only, and before the limit is passed. */
	if (l->size_max > 0 && l->size + (int64_t)(l->out_len + need) > l->size_max) {
		log_flush(l);
		if (l->size + (int64_t)need > l->size_max && l->size > 0 && ftruncate(l->fd, 0) == 0)
			l->size = 0;
	}
	l->header[l->header_len - TAG] = tag;
	if (n >= WRITE_IN_PLACE) {
		flush_with(l, content, n);
		return;
	}
	if (l->out_len + need > OUT_BYTES)
		log_flush(l);
	p = copy(l->out + l->out_len, l->header, l->header_len);
	p = copy(p, content, n);
	*p = '\n';
	l->out_len += need;
	l->batched += n;
}

void stream_frame(struct stream *s, struct logfile *l)
{
	size_t start = 0, from = s->scanned;

	for (;;) {
		/* A line is kept until its newline comes or it has outgrown a record: one
		 * read's end is no reason for a partial record. */
		const char *newline = find_newline(s->buf + from, s->buf + s->len);
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
	log_flush(l);
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
