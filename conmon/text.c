/* Text and numbers. printf, getopt and strtol would be most of this program. */
#include "conmon.h"

#include <errno.h>
#include <string.h>
#include <time.h>

struct text text_in(char *buf, size_t size)
{
	buf[0] = '\0';
	return (struct text){ .at = buf, .end = buf + size };
}

void text_put(struct text *t, const char *s)
{
	size_t n = strlen(s), room = (size_t)(t->end - t->at) - 1;

	t->cut = t->cut || n > room;
	if (n > room)
		n = room;
	memcpy(t->at, s, n);
	t->at += n;
	*t->at = '\0';
}

void text_digits(struct text *t, uint64_t n, int digits)
{
	char buf[24], *p = buf + sizeof buf - 1;

	*p = '\0';
	for (; n || digits > 0; n /= 10, digits--)
		*--p = (char)('0' + n % 10);
	text_put(t, p);
}

void text_number(struct text *t, int64_t n)
{
	if (n < 0)
		text_put(t, "-");
	text_digits(t, n < 0 ? -(uint64_t)n : (uint64_t)n, 1);
}

void text_entry(struct text *t, const char *key, int64_t n)
{
	text_put(t, key);
	text_put(t, " ");
	text_number(t, n);
	text_put(t, "\n");
}

int parse_number(const char *s, const char **end, uint64_t *n)
{
	uint64_t v = 0;
	const char *p = s;

	for (; *p >= '0' && *p <= '9'; p++) {
		unsigned digit = (unsigned)(*p - '0');

		if (v > (UINT64_MAX - digit) / 10)
			return -ERANGE;
		v = v * 10 + digit;
	}
	if (p == s)
		return -EINVAL;
	*n = v;
	if (end)
		*end = p;
	return 0;
}

int64_t now_ns(int clock)
{
	struct timespec t;

	if (clock_gettime(clock, &t) < 0)
		return 0;
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}
