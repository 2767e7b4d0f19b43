/* What the containers of the tests run where busybox is too slow or too kind:
 *
 *   guest lines MILLISECONDS WIDTH   numbered lines of WIDTH bytes for that long, at full speed
 *   guest count N WIDTH              N of them, and then it waits
 *   guest bytes N                    N bytes of 'x' in one go, then _exit 1 ms later
 *   guest die SIGNAL                 of a signal, by its default action
 *   guest ask DIRECTORY              the monitor there for its status
 *   guest detach PIDFILE CODE MS     as a runtime's exec --detach, 50 ms long: a command that
 *                                    ends after MS with CODE, or of signal CODE - 128
 *   guest eat                        memory until the kernel says no
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static char block[65536];

static int put(const char *p, size_t n)
{
	while (n) {
		ssize_t w = write(1, p, n);

		if (w < 0)
			return 1;
		p += w;
		n -= (size_t)w;
	}
	return 0;
}

static long now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static int lines(long ms, unsigned long count, size_t width)
{
	unsigned long number = 0;
	size_t per_block = sizeof block / width;

	for (long end = now_ms() + ms; now_ms() < end && number < count;) {
		memset(block, '.', sizeof block);
		for (size_t i = 0; i < per_block; i++) {
			char *line = block + i * width;
			unsigned long n = ++number;

			for (int digit = 11; digit >= 0; digit--, n /= 10)
				line[digit] = (char)('0' + n % 10);
			line[width - 1] = '\n';
		}
		if (put(block, per_block * width))
			return 1;
	}
	return 0;
}

static int bytes(size_t n)
{
	struct timespec ms = { 0, 1000000 };

	memset(block, 'x', sizeof block);
	for (size_t part; n; n -= part) {
		part = n < sizeof block ? n : sizeof block;
		if (put(block, part))
			return 1;
	}
	nanosleep(&ms, NULL);
	_exit(0);
}

static void die(int sig)
{
	struct rlimit none = { 0, 0 };

	setrlimit(RLIMIT_CORE, &none);
	kill(getpid(), sig);
	for (;;)
		pause();
}

static void eat(void)
{
	for (;;) {
		char *p = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (p != MAP_FAILED)
			memset(p, 1, 1 << 20);
	}
}

static int ask(const char *dir)
{
	struct sockaddr_un a = { AF_UNIX, "ctl" };
	char status[] = { 1, 5, 0, 0, 7, 0, 0, 0 }, reply[8192];
	int fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);

	if (chdir(dir) || connect(fd, (struct sockaddr *)&a, sizeof a))
		return 3;
	if (send(fd, status, sizeof status, MSG_NOSIGNAL) > 0 && recv(fd, reply, sizeof reply, 0) > 0)
		return put("answered\n", 9);
	return put("refused\n", 8);
}

static void sleep_ms(long ms)
{
	struct timespec t = { ms / 1000, ms % 1000 * 1000000 };

	nanosleep(&t, NULL);
}

/* The command is the grandchild of an intermediate that has gone, so that whoever is
 * the subreaper has it before the runtime itself ends. */
static int detach(const char *pid_file, int code, long ms)
{
	if (fork() == 0) {
		pid_t command = fork();
		FILE *f;

		if (command == 0) {
			sleep_ms(ms);
			if (code > 128)
				die(code - 128);
			_exit(code);
		}
		f = fopen(pid_file, "w");
		_exit(!f || fprintf(f, "%d", (int)command) < 0 || fclose(f));
	}
	sleep_ms(50);
	return 0;
}

int main(int argc, char **argv)
{
	const char *verb = argc > 1 ? argv[1] : "";

	if (argc == 4 && !strcmp(verb, "lines"))
		return lines(atol(argv[2]), -1UL, (size_t)atol(argv[3]));
	if (argc == 4 && !strcmp(verb, "count"))
		return lines(1000000, strtoul(argv[2], NULL, 10), (size_t)atol(argv[3])) || pause();
	if (argc == 3 && !strcmp(verb, "bytes"))
		return bytes((size_t)atol(argv[2]));
	if (argc == 3 && !strcmp(verb, "die"))
		die(atoi(argv[2]));
	if (argc == 3 && !strcmp(verb, "ask"))
		return ask(argv[2]);
	if (argc == 5 && !strcmp(verb, "detach"))
		return detach(argv[2], atoi(argv[3]), atol(argv[4]));
	if (argc == 2 && !strcmp(verb, "eat"))
		eat();
	return 2;
}
