/* The only program in the image of `crio selftest`: it prints, reads, waits and ends
 * as it is told. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int usage(void)
{
	fputs("usage: guest run [LINES] | echo TEXT... | err TEXT... | exit CODE | cat | sleep SECONDS\n", stderr);
	return 2;
}

static int words(FILE *out, char **argv)
{
	for (; *argv; argv++)
		fprintf(out, "%s%s", *argv, argv[1] ? " " : "");
	fputc('\n', out);
	return fflush(out) == 0 ? 0 : 1;
}

/* Prints numbered lines, every second one to stderr, and waits for SIGTERM, which PID
 * 1 of a namespace gets only if it asks for it. */
static int run(int lines)
{
	sigset_t term;
	int sig;

	sigemptyset(&term);
	sigaddset(&term, SIGTERM);
	if (sigprocmask(SIG_BLOCK, &term, NULL) < 0)
		return 1;
	for (int i = 1; i <= lines; i++) {
		FILE *out = i % 2 ? stdout : stderr;

		fprintf(out, "guest %s line %d\n", i % 2 ? "stdout" : "stderr", i);
		fflush(out);
	}
	return sigwait(&term, &sig) == 0 ? 0 : 1;
}

static int cat(void)
{
	char buf[4096];
	ssize_t n;

	while ((n = read(0, buf, sizeof buf)) > 0)
		for (ssize_t done = 0, w; done < n; done += w)
			if ((w = write(1, buf + done, (size_t)(n - done))) < 0)
				return 1;
	return n < 0;
}

int main(int argc, char **argv)
{
	const char *verb = argc > 1 ? argv[1] : "";

	if (!strcmp(verb, "run"))
		return run(argc > 2 ? atoi(argv[2]) : 0);
	if (!strcmp(verb, "echo"))
		return words(stdout, argv + 2);
	if (!strcmp(verb, "err"))
		return words(stderr, argv + 2);
	if (!strcmp(verb, "cat"))
		return cat();
	if (!strcmp(verb, "exit") && argc == 3)
		return atoi(argv[2]);
	if (!strcmp(verb, "sleep") && argc == 3)
		return sleep((unsigned)atoi(argv[2])) != 0;
	return usage();
}
