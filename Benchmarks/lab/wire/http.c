// Requests for a document over HTTP/1.1, offered at a fixed rate whatever the server does: they are due at times of a Poisson process, as those of
// many independent people are, and go over whichever of the connections is free. What a request took counts from when it was due, so a wait for a
// free connection, or for this program to be scheduled, is part of it; a generator that asks later when it was answered late would leave that out.
// The times are the same for the same seed. How busy the processor was meanwhile is measured here too, from the first request to the last answer: it is
// the one that this program is bound to, and whoever started it has work of his own before and after.
#define _GNU_SOURCE
#include "wire.h"

#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CONNECTIONS = 1024, HEAD = 4096, BUFFER = 1 << 16 };

struct connection {
  int fd;
  uint64_t due;
  // Of the answer: what has come of its head, and what is still to come of its body (-1: the head is not complete).
  int64_t left;
  int head_length;
  char head[HEAD];
};

static struct connection connections[CONNECTIONS];
// Those that wait for nothing, the one that has been idle for longest first: all are used.
static struct connection *idle[CONNECTIONS];
static unsigned idle_first;
static int idle_count;
static uint64_t answered;
// Of each answer, when it was due (seconds from the beginning) and what it took (microseconds); kept until the end, so that no file is written while
// anything is measured.
static struct answer { float due, took; } *answers;
static uint64_t answers_room, begin;
static char request[512];
static int request_length;

static void put_idle(struct connection *connection) {
  idle[(idle_first + (unsigned)idle_count++) % CONNECTIONS] = connection;
}

static struct connection *take_idle(void) {
  idle_count--;
  return idle[idle_first++ % CONNECTIONS];
}

// A number above 0 and below 1.
static double uniform(uint64_t *state) {
  // splitmix64.
  uint64_t z = *state += 0x9E3779B97F4A7C15u;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
  z = (z ^ z >> 27) * 0x94D049BB133111EBu;
  return ((double)((z ^ z >> 31) >> 11) + 0.5) / 9007199254740992.0;
}

static void ask(struct connection *connection, uint64_t due) {
  connection->due = due;
  connection->left = -1;
  connection->head_length = 0;
  // Small, and the one before was answered: it fits into the socket's buffer.
  if (send(connection->fd, request, (size_t)request_length, MSG_NOSIGNAL) != request_length) wire_fail("send a request");
}

// The body's length; -1 when the answer is not one of status 200 with a length.
static int64_t body_length(const char *head) {
  if (strncmp(head, "HTTP/1.1 200", 12) != 0) return -1;
  for (const char *line = strstr(head, "\r\n"); line != NULL; line = strstr(line + 2, "\r\n"))
    if (strncasecmp(line + 2, "content-length:", 15) == 0) return strtoll(line + 17, NULL, 10);
  return -1;
}

// Whether the answer is complete.
static int take(struct connection *connection, const char *bytes, ssize_t count) {
  if (connection->left < 0) {
    ssize_t room = HEAD - 1 - connection->head_length, taken = count < room ? count : room;
    memcpy(connection->head + connection->head_length, bytes, (size_t)taken);
    int before = connection->head_length;
    connection->head_length += (int)taken;
    connection->head[connection->head_length] = 0;
    char *end = strstr(connection->head, "\r\n\r\n");
    if (end == NULL) {
      if (taken < count) wire_fail("an answer's head is too long");
      return 0;
    }
    end[2] = 0;
    connection->left = body_length(connection->head);
    if (connection->left < 0) wire_fail("an answer is no document");
    count -= end + 4 - connection->head - before;
  }
  connection->left -= count;
  if (connection->left < 0) wire_fail("more came than an answer");
  return connection->left == 0;
}

static void receive(struct connection *connection) {
  static char buffer[BUFFER];
  ssize_t count;
  while ((count = recv(connection->fd, buffer, sizeof buffer, MSG_DONTWAIT)) > 0) {
    if (!take(connection, buffer, count)) continue;
    if (answered == answers_room) wire_fail("more answers than requests");
    answers[answered++] = (struct answer){
        .due = (float)((double)(connection->due - begin) / 1e9), .took = (float)(wire_now() - connection->due) / 1000};
    put_idle(connection);
    return;
  }
  if (count == 0 || errno != EAGAIN) wire_fail("the server closed a connection");
}

static void open_connection(struct connection *connection, struct sockaddr_in *server, int poll) {
  int on = 1;
  connection->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (connection->fd < 0 || connect(connection->fd, (struct sockaddr *)server, sizeof *server) != 0) wire_fail("connect");
  setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  struct epoll_event event = {.events = EPOLLIN, .data.ptr = connection};
  if (epoll_ctl(poll, EPOLL_CTL_ADD, connection->fd, &event) != 0) wire_fail("epoll");
  put_idle(connection);
}

// Seconds that a processor has been idle since the machine's start, waiting for disks included (proc_stat(5)). The kernel counts idle time itself, and
// all other time by samples.
static double idle_seconds(int cpu) {
  static char line[1024];
  double idle = 0;
  FILE *file = fopen("/proc/stat", "r");
  if (file == NULL) wire_fail("/proc/stat");
  while (fgets(line, sizeof line, file) != NULL) {
    int number;
    unsigned long long waits[2];
    if (sscanf(line, "cpu%d %*u %*u %*u %llu %llu", &number, &waits[0], &waits[1]) == 3 && number == cpu)
      idle = (double)(waits[0] + waits[1]) / (double)sysconf(_SC_CLK_TCK);
  }
  fclose(file);
  return idle;
}

// wire http ADDRESS PATH CONNECTIONS REQUESTS/S SECONDS SEED TIMES-FILE
int wire_http(int count, char **arguments) {
  if (count != 7) return 64;
  struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons(80)};
  if (inet_pton(AF_INET, arguments[0], &server.sin_addr) != 1) return 64;
  request_length = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", arguments[1], arguments[0]);
  int connection_count = atoi(arguments[2]);
  double rate = atof(arguments[3]), seconds = atof(arguments[4]);
  uint64_t seed = strtoull(arguments[5], NULL, 10);
  if (request_length >= (int)sizeof request || connection_count < 1 || connection_count > CONNECTIONS || rate <= 0) return 64;
  // Far more than a Poisson process makes. Touched, so that no page has to be found later.
  answers_room = (uint64_t)(2 * rate * seconds) + 1000;
  answers = malloc(answers_room * sizeof *answers);
  if (answers == NULL) wire_fail("memory for the times");
  memset(answers, 0, answers_room * sizeof *answers);
  prctl(PR_SET_TIMERSLACK, 1);
  int poll = epoll_create1(EPOLL_CLOEXEC);
  for (int index = 0; index < connection_count; index++) open_connection(&connections[index], &server, poll);

  int cpu = sched_getcpu();
  double idle = idle_seconds(cpu);
  uint64_t started = wire_now();
  begin = started + 10000000;
  uint64_t end = begin + (uint64_t)(seconds * 1e9), due = begin, offered = 0;
  // Those that are due wait for a connection in order: only the time of the first is kept, the next follow from it.
  while (due < end || idle_count < connection_count) {
    uint64_t now = wire_now();
    while (due < end && due <= now && idle_count > 0) {
      ask(take_idle(), due);
      offered++;
      due += (uint64_t)(-log(uniform(&seed)) * 1e9 / rate);
    }
    if (now > end + 5000000000u) break;
    uint64_t until = due < end && idle_count > 0 ? due : now + 100000000;
    now = wire_now();
    uint64_t wait = until > now ? until - now : 0;
    struct timespec patience = {.tv_sec = (time_t)(wait / 1000000000u), .tv_nsec = (long)(wait % 1000000000u)};
    struct epoll_event events[64];
    int ready = epoll_pwait2(poll, events, 64, &patience, NULL);
    if (ready < 0 && errno != EINTR) wire_fail("epoll_pwait2");
    for (int index = 0; index < ready; index++) receive(events[index].data.ptr);
  }
  idle = idle_seconds(cpu) - idle;
  double elapsed = (double)(wire_now() - started) / 1e9;
  // What could not even be asked counts, too.
  while (due < end) {
    offered++;
    due += (uint64_t)(-log(uniform(&seed)) * 1e9 / rate);
  }
  FILE *file = fopen(arguments[6], "w");
  if (file == NULL) wire_fail(arguments[6]);
  for (uint64_t index = 0; index < answered; index++)
    fprintf(file, "%.3f %.1f\n", (double)answers[index].due, (double)answers[index].took);
  if (fclose(file) != 0) wire_fail(arguments[6]);
  printf("{\"offered\": %llu, \"answered\": %llu, \"failed\": %llu, \"busy\": %.4f}\n", (unsigned long long)offered,
         (unsigned long long)answered, (unsigned long long)(offered - answered), 1 - idle / elapsed);
  return 0;
}
