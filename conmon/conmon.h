/* conmon: the monitor of one container. It starts the container through the OCI
 * runtime, writes its output to a CRI log, and is the only witness of its exit.
 *
 * One process, one thread, one poll loop, no heap: everything it owns is in struct
 * conmon, whose size is known when it is compiled. Functions return 0 or a negative
 * errno unless they say otherwise. */
#ifndef CONMON_H
#define CONMON_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <unistd.h>

enum {
	/* Most bytes of one record's content; CRI log readers expect lines whole up to it. */
	LINE_MAX_BYTES = 16384,
	/* A full line and what one read may bring behind it. */
	STREAM_BYTES = 2 * LINE_MAX_BYTES,
	OUT_BYTES = 2 * LINE_MAX_BYTES,
	MAX_CLIENTS = 16,
	MAX_MESSAGE = 4096,
	MAX_TEXT = 2048,
	MAX_ARGS = 16, /* of --runtime-arg and of each other repeatable option */
	FD_DAEMON = 3, /* the first connection, made by the daemon that started us */
};

/* Bounds on waits, in milliseconds. */
enum {
	DRAIN_MS = 500, /* for EOF, when somebody elsewhere holds the output open */
	KILL_MS = 2000, /* for what is left of the container to die */
	KILL_AGAIN_MS = 5,
	DELETE_MS = 5000, /* for the runtime's delete of a failed start */
	ACK_MS = 1000, /* for the daemon to take the exit */
};

/* The states, in the order in which they come. The numbers are part of the protocol. */
enum state {
	STATE_CREATING = 0, /* the runtime's create runs */
	STATE_CREATED = 1, /* the runtime's start runs */
	STATE_RUNNING = 2,
	STATE_EXITED = 3, /* the exit record is written */
	STATE_FAILED = 4, /* the container could not be started; recorded too */
	/* Not seen by clients, which are told the state it leads to only when it is reached. */
	STATE_ENDING = 5, /* init is gone: its children are killed, the output drained */
	STATE_UNDOING = 6, /* the runtime's delete runs */
};

struct options {
	const char *id, *run_dir, *runtime, *log_path, *oom_file, *pod_oom_file;
	const char *runtime_args[MAX_ARGS], *join[MAX_ARGS], *kill[MAX_ARGS];
	size_t n_runtime_args, n_join, n_kill;
	int64_t log_size_max;
	bool tty, use_stdin, stdin_once;
};

struct logfile {
	const char *path;
	int fd;
	int64_t size, size_max; /* bytes; 0 is unlimited */
	bool torn; /* the last record is cut and could not be taken back */
	uint64_t written, dropped;
	size_t out_len;
	char header[64];
	size_t header_len;
	char out[OUT_BYTES];
};

struct stream {
	int fd;
	const char *name; /* "stdout" or "stderr" */
	size_t len, scanned; /* bytes in buf; bytes of them known to hold no newline */
	char buf[STREAM_BYTES];
};

struct client {
	int fd;
	bool hello; /* wants STARTED, FAILED and EXIT */
	bool acked;
};

struct counter {
	int fd;
	uint64_t base, last;
	bool pollable; /* v2's memory.events tells when it changes */
};

struct conmon {
	struct options opt;
	enum state state;
	int dir, signals, listener, console, devnull, init_pidfd, stdin_fd;
	char oom_score_adj[16]; /* before ours was lowered: the runtime's again */
	pid_t runtime, init; /* the running runtime command; the container's first process */
	bool init_gone;
	int init_status;
	uint64_t start_ticks;
	int64_t start_ns, end_ns;
	int64_t kill_until, drain_until, undo_until, ack_until; /* monotonic ms; 0 unset */
	bool oom, left, recorded, told;
	uint16_t rows, cols;
	struct counter container_oom, pod_oom;
	struct logfile log;
	struct stream streams[2];
	struct client clients[MAX_CLIENTS];
	const char *stage; /* what is being prepared, for the text of a failure */
	char failure[MAX_TEXT];
	char scratch[MAX_MESSAGE];
	size_t record_len;
	char record[MAX_MESSAGE];
};

/* log.c */
int log_open(struct logfile *l);
int log_reopen(struct logfile *l);
/* Takes what there is to read and writes it as records. Returns 1 while the stream
 * is open, 0 at its end; the caller closes it. */
int stream_read(struct stream *s, struct logfile *l);
/* Writes a last line that has no newline. */
void stream_flush(struct stream *s, struct logfile *l);
/* The framing alone, for stream_read and its fuzzer: buf[0..len) has new bytes from scanned on. */
void stream_frame(struct stream *s, struct logfile *l);
void log_stamp(struct logfile *l, const char *stream, int64_t now_ns);
void log_flush(struct logfile *l);

/* cgroup.c */
int cgroup_join(const char *procs_file);
/* Kills every process of the tree. Returns how many it found, or a negative errno. */
int cgroup_kill(const char *dir);
void counter_open(struct counter *c, const char *file);
void counter_read(struct counter *c);
static inline bool counter_moved(const struct counter *c) { return c->last > c->base; }

/* child.c */
int child_create(struct conmon *m);
int child_start(struct conmon *m);
int child_delete(struct conmon *m);
int child_created(struct conmon *m);
void child_failure_text(struct conmon *m, const char *stage, int status);
int child_console(struct conmon *m);
void child_resize(struct conmon *m);

/* record.c */
int record_write(struct conmon *m);
size_t record_format(struct conmon *m, char *out, size_t size);

/* proto.c */
int proto_listen(struct conmon *m);
void proto_accept(struct conmon *m);
void proto_request(struct conmon *m, struct client *c);
void proto_add(struct conmon *m, int fd, bool hello);
void proto_drop(struct client *c);
void proto_push_started(struct conmon *m);
void proto_push_failed(struct conmon *m);
void proto_push_exit(struct conmon *m);
bool proto_all_acked(const struct conmon *m);
/* Answers one request of n bytes; returns the length of the reply in out. */
size_t proto_answer(struct conmon *m, struct client *c, const char *in, size_t n, char *out);

/* exec.c */
int exec_main(int argc, char **argv);

/* loop.c */
int loop_run(struct conmon *m);

/* util of the kernel's odds and ends */
int64_t now_ns(int clock);
static inline int64_t now_ms(void) { return now_ns(1 /* CLOCK_MONOTONIC */) / 1000000; }

static inline void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}
#define cleanup_close __attribute__((cleanup(close_fd)))

#endif
