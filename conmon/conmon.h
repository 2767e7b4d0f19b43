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
	OUT_BYTES = 16384,
	SCRATCH_BYTES = OUT_BYTES,
	/* Of one packet, without its header. */
	MAX_PAYLOAD = 8184,
	/* Attached clients get no more than part of the table: a daemon always finds room. */
	MAX_CLIENTS = 128,
	MAX_ATTACHED = 112,
	ATTACH_QUEUE = 1048576, /* bytes an attached client may lag behind */
	MAX_MESSAGE = 4096,
	MAX_TEXT = 2048,
	MAX_WORDS = 1024, /* the end of what a runtime printed */
	MAX_ID = 255,
	MAX_ARGS = 16, /* of --runtime-arg and of each other repeatable option */
	FD_DAEMON = 3, /* the first connection, made by the daemon that started us */
	PAGE = 4096,
	SLACK = 16, /* behind a buffer, so that copies may go in whole vectors */
};

/* Bounds on waits, in milliseconds. */
enum {
	DRAIN_MS = 500, /* for EOF, when somebody elsewhere holds the output open */
	KILL_MS = 2000, /* for what is left of the container to die */
	KILL_AGAIN_MS = 20, /* where the kernel cannot tell of a death (no pidfd) */
	DELETE_MS = 5000, /* for the runtime's delete of a failed start */
	ACK_MS = 1000, /* for the daemon to take the exit */
	POLL_AGAIN_MS = 100, /* after poll itself has failed */
	DEAF_MS = 1000, /* without accepting, when there are no descriptors */
	RELEASE_MS = 1000, /* of silence, until the memory of a burst is given back */
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

/* What an attached client takes part in. The numbers are part of the protocol. */
enum {
	ATTACH_STDIN = 1,
	ATTACH_STDOUT = 2,
	ATTACH_STDERR = 4,
};

struct options {
	const char *id, *run_dir, *runtime, *log_path, *log_size, *oom_file, *pod_oom_file, *uid, *gid;
	const char *runtime_args[MAX_ARGS], *join[MAX_ARGS], *kill[MAX_ARGS];
	size_t n_runtime_args, n_join, n_kill;
	int64_t log_size_max;
	uint32_t stdio_uid, stdio_gid; /* whose the pipes are */
	bool tty, use_stdin, stdin_once;
	bool sandboxed; /* the first process is inside of a sandbox: the runtime alone tells its end */
};

struct logfile {
	const char *path;
	int fd;
	int64_t size, size_max; /* bytes; 0 is unlimited */
	bool torn; /* the last record is cut and could not be taken back */
	bool spread; /* a batch was more than a page */
	uint64_t written, dropped, batched; /* bytes of content; batched are those in out */
	size_t out_len, header_len;
	char header[64];
	char *out; /* OUT_BYTES, and SLACK behind */
};

struct stream {
	int fd;
	const char *name; /* "stdout" or "stderr" */
	uint8_t attach; /* ATTACH_STDOUT or ATTACH_STDERR */
	size_t len, scanned; /* bytes in buf; bytes of them known to hold no newline */
	char *buf; /* STREAM_BYTES, and SLACK behind */
};

struct client {
	int fd;
	bool hello; /* wants STARTED, FAILED and EXIT */
	bool acked;
	bool mute; /* it has closed: nothing can be sent, but its last input is still read */
	bool attached;
	uint8_t streams; /* ATTACH_*, of an attached one; stdin until its end */
};

/* Input that the container has not taken. While there is some, no client's input is
 * read: the kernel's queues, not ours, hold what is behind it. */
struct input {
	int fd; /* of a pipe; -1 with a terminal, whose master takes the input */
	bool closed; /* stdin_once is fulfilled, or the container does not read any more */
	bool last; /* to be closed behind what there is */
	size_t at, len;
	struct client *from; /* who is owed the reply; NULL when it is gone */
	uint32_t seq;
	char *buf; /* MAX_PAYLOAD */
};

struct counter {
	int fd;
	uint64_t base, last;
	bool pollable; /* v2's memory.events tells when it changes */
};

/* Tells that something of a cgroup has died, and that it should be looked at again. */
struct witness {
	int fd;
	short events;
};

/* What is large lies in pages of its own, mapped once: what is not used is not there,
 * and what a burst has used is given back after it. */
struct buffers {
	char stream[2][STREAM_BYTES + PAGE]; /* the last page is slack */
	char out[OUT_BYTES + PAGE];
	char record[MAX_MESSAGE];
	char input[2 * PAGE];
};

_Static_assert(MAX_PAYLOAD <= 2 * PAGE && offsetof(struct buffers, input) % PAGE == 0, "whole pages");

struct conmon {
	struct options opt;
	enum state state;
	int dir, signals, listener, console, devnull, init_pidfd, words_fd, tty_peer;
	int stdio[3]; /* the container's ends of its pipes; a sandboxed one's are kept from create to start */
	char oom_score_adj[16]; /* before ours was lowered: the runtime's again */
	pid_t runtime, init; /* the running runtime command; the container's first process, 0 inside of a sandbox */
	bool init_gone, init_seen; /* waited for; seen dead, and the counters read */
	int init_status;
	uint64_t start_ticks;
	int64_t start_ns, end_ns;
	int64_t kill_until, drain_until, undo_until, ack_until, deaf_until; /* monotonic ms; 0 unset */
	bool oom, pod_oom_moved, left, recorded, told;
	bool used; /* more of the buffers than an idle monitor needs */
	bool sized;
	uint16_t rows, cols;
	struct counter container_oom, pod_oom;
	struct witness witness;
	struct logfile log;
	struct stream streams[2];
	size_t n_clients, n_attached; /* slots that were ever in use; attached ones now */
	struct client clients[MAX_CLIENTS];
	const char *stage; /* what is being prepared, for the text of a failure */
	size_t record_len, words_len;
	struct input input;
	char words[MAX_WORDS];
	char failure[MAX_TEXT];
	char *scratch; /* SCRATCH_BYTES, that of the log's batch: nobody's between two events */
	struct buffers *buffers;
};

/* text.c: what the C library does in twenty times the memory */
struct text {
	char *at, *end; /* *at is always '\0', and end is behind the last byte there is */
	bool cut;
};
struct text text_in(char *buf, size_t size);
void text_put(struct text *t, const char *s);
void text_number(struct text *t, int64_t n);
void text_digits(struct text *t, uint64_t n, int digits);
/* "key N\n" */
void text_entry(struct text *t, const char *key, int64_t n);
/* The number that s begins with; *end is behind it. -EINVAL when there is none. */
int parse_number(const char *s, const char **end, uint64_t *n);
int64_t now_ns(int clock);
static inline int64_t now_ms(void) { return now_ns(1 /* CLOCK_MONOTONIC */) / 1000000; }

/* log.c */
int log_open(struct logfile *l);
int log_reopen(struct logfile *l);
/* Writes a last line that has no newline. */
void stream_flush(struct stream *s, struct logfile *l);
/* Cuts what is in the buffer into records: buf[0..len) has new bytes from scanned on. */
void stream_frame(struct stream *s, struct logfile *l);
void log_stamp(struct logfile *l, const char *stream, int64_t now_ns);

/* cgroup.c */
int cgroup_join(const char *procs_file);
/* Kills every process of the tree. Returns 1 while one lives, 0 when none does. w gets
 * what tells of a death, where the kernel can. */
int cgroup_kill(const char *dir, struct witness *w);
void counter_open(struct counter *c, const char *file);
/* Returns false when it cannot be read any more: the last value stands. */
bool counter_read(struct counter *c);
/* The end was recorded and told. */
static inline bool is_over(const struct conmon *m) { return m->state == STATE_EXITED || m->state == STATE_FAILED; }

static inline bool counter_moved(const struct counter *c) { return c->last > c->base; }

/* child.c */
int child_create(struct conmon *m);
int child_start(struct conmon *m);
void child_close_stdio(struct conmon *m);
/* Runs the runtime's wait, whose answer becomes the words. */
int child_wait(struct conmon *m);
int child_delete(struct conmon *m);
int child_created(struct conmon *m);
bool child_ended(const struct conmon *m);
int child_signal(const struct conmon *m, int sig);
int child_console(struct conmon *m);
void child_resize(struct conmon *m);
int make_pipe(int *reader, int *writer);
int make_nonblocking(int fd);

/* words.c: why a runtime failed */
/* Keeps the end of what there is to read. Returns 1 if it took some, 0 if there is
 * nothing now, an error at the end. */
int words_take(struct conmon *m, int fd);
void words_failure(struct conmon *m, const char *stage, int status);
bool words_message(char *log, char *out, size_t size);
/* The exit code that the runtime's wait told before it ended with status: its words end
 * with "exitStatus":N} and a newline. 255, and why in m->failure, for all else. */
int words_verdict(struct conmon *m, int status);

/* record.c */
int record_write(struct conmon *m);
size_t record_format(struct conmon *m, char *out, size_t size);

/* sock.c: sockets, and the table of who is connected */
/* Listens in the run directory, whose path may be longer than a socket's address. */
int sock_listen(struct conmon *m, const char *name, int type);
void sock_accept(struct conmon *m);
void client_add(struct conmon *m, int fd, bool hello);
void client_drop(struct conmon *m, struct client *c);
struct part {
	const char *at;
	size_t n;
};
/* Sends both as one packet; the second may be empty. A client whose queue is full is dropped. */
void client_send(struct conmon *m, struct client *c, struct part head, struct part payload);

/* proto.c */
enum { HEADER = 8, REPLY_HEADER = HEADER + 4, STATUS_BYTES = 32 };
void proto_header(char *out, int type, uint32_t seq);
void proto_reply(struct conmon *m, struct client *c, int type, uint32_t seq, int error);
void proto_request(struct conmon *m, struct client *c);
void proto_push_started(struct conmon *m);
void proto_push_failed(struct conmon *m);
void proto_push_exit(struct conmon *m);
bool proto_all_acked(const struct conmon *m);
/* Answers the n bytes of one request, which lie in m->scratch. */
void proto_answer(struct conmon *m, struct client *c, size_t n);

/* attach.c: output to clients, input from them. Requests return an errno, or -1 when
 * the reply is still owed. */
enum { INPUT = 8, INPUT_END = 9, PUSH_OUTPUT = 0x43, PUSH_OUTPUT_END = 0x44 };
int attach(struct conmon *m, struct client *c, const char *payload, size_t n);
int attach_input(struct conmon *m, struct client *c, uint32_t seq, const char *payload, size_t n);
int attach_input_end(struct conmon *m, struct client *c, size_t n);
/* Whether a client's requests have to wait for input that was not taken yet. */
bool attach_paused(const struct conmon *m, const struct client *c);
void attach_sweep(struct conmon *m);
/* The client is leaving: its part in stdin ends. */
void attach_leave(struct conmon *m, struct client *c);
/* What takes input, -1 when nothing does (yet). */
int attach_input_fd(const struct conmon *m);
/* Goes on with what the container has not taken. */
void attach_feed(struct conmon *m);
void attach_output(struct conmon *m, const struct stream *s, const char *data, size_t n);
void attach_output_end(struct conmon *m);

/* exec.c */
int exec_main(int argc, char **argv);

/* loop.c */
void loop_run(struct conmon *m);
int conmon_init(struct conmon *m);

static inline void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}
#define cleanup_close __attribute__((cleanup(close_fd)))

#endif
