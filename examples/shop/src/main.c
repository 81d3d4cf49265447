/* One thread, one poll loop, at most MAX_CONNECTIONS at a time. */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "http.h"
#include "version.h"

enum { MAX_CONNECTIONS = 1024, IDLE_MS = 75000, DRAIN_MS = 10000 };

static volatile sig_atomic_t stopping;
static int wake[2];

static void on_signal(int number)
{
    (void)number;
    int saved = errno;
    stopping = 1;
    if (write(wake[1], "", 1) < 0) {
        /* The pipe is full, so the loop wakes up anyway. */
    }
    errno = saved;
}

static long now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000L + now.tv_nsec / 1000000L;
}

static int listen_on(long port)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
    if (fd < 0)
        return -1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(fd, 512) < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

/* Sends what can be sent. 0 if the connection lives on, -1 if it is done. */
static int flush(struct connection *c)
{
    while (c->out_sent < c->out_length) {
        ssize_t sent = send(c->fd, c->out + c->out_sent, c->out_length - c->out_sent, MSG_NOSIGNAL);
        if (sent > 0)
            c->out_sent += (size_t)sent;
        else if (sent < 0 && errno == EINTR)
            continue;
        else if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return 0;
        else
            return -1;
    }
    c->out_length = c->out_sent = 0;
    return c->close_after ? -1 : 0;
}

/* Reads, answers and writes until the socket has no more to give. -1 if the connection is done. */
static int serve(struct connection *c)
{
    for (;;) {
        if (flush(c) < 0)
            return -1;
        if (c->out_length > c->out_sent)
            return 0; /* the peer reads slowly: nothing more is taken from it */
        int state = http_answer(c, stopping);
        if (state < 0)
            return -1;
        if (state > 0)
            continue;
        ssize_t got = recv(c->fd, c->in + c->in_length, sizeof c->in - c->in_length, 0);
        if (got > 0) {
            c->in_length += (size_t)got;
            c->deadline_ms = now_ms() + IDLE_MS;
        } else if (got < 0 && errno == EINTR) {
            continue;
        } else if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            return 0;
        } else {
            return -1;
        }
    }
}

/* Closes so that the last answer arrives even if the peer was still sending. */
static void end(struct connection *c)
{
    char rest[4096];
    shutdown(c->fd, SHUT_WR);
    for (int i = 0; i < 16 && recv(c->fd, rest, sizeof rest, MSG_DONTWAIT) > 0; i++) {
    }
    close(c->fd);
    free(c);
}

static void take(int listener, struct connection **all, int *count)
{
    int on = 1;
    while (*count < MAX_CONNECTIONS) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return;
        struct connection *c = calloc(1, sizeof *c);
        if (c == NULL) {
            close(fd);
            return;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        c->fd = fd;
        c->deadline_ms = now_ms() + IDLE_MS;
        all[(*count)++] = c;
    }
}

int main(void)
{
    static struct connection *all[MAX_CONNECTIONS];
    static struct pollfd polled[MAX_CONNECTIONS + 2];
    const char *text = getenv("PORT");
    char *rest = NULL;
    long port = text != NULL ? strtol(text, &rest, 10) : 8080;
    if (port < 1 || port > 65535 || (rest != NULL && *rest != '\0')) {
        fprintf(stderr, "shop: PORT must be a number from 1 to 65535\n");
        return 2;
    }
    int listener = listen_on(port);
    if (listener < 0 || pipe2(wake, O_NONBLOCK | O_CLOEXEC) < 0) {
        fprintf(stderr, "shop: cannot listen on port %ld: %s\n", port, strerror(errno));
        return 1;
    }
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    fprintf(stderr, "shop %s listens on port %ld\n", SHOP_VERSION, port);

    int count = 0;
    long drained_ms = 0;
    for (;;) {
        if (stopping && listener >= 0) {
            /* What the kernel accepted for us already is served, too. */
            take(listener, all, &count);
            close(listener);
            listener = -1;
            drained_ms = now_ms() + DRAIN_MS;
        }
        if (stopping && (count == 0 || now_ms() >= drained_ms))
            break;
        polled[0] = (struct pollfd){.fd = count < MAX_CONNECTIONS ? listener : -1, .events = POLLIN};
        polled[1] = (struct pollfd){.fd = wake[0], .events = POLLIN};
        for (int i = 0; i < count; i++) {
            short events = all[i]->out_length > all[i]->out_sent ? POLLOUT : POLLIN;
            polled[i + 2] = (struct pollfd){.fd = all[i]->fd, .events = events};
        }
        int before = count;
        if (poll(polled, (nfds_t)count + 2, stopping ? 50 : 1000) < 0 && errno != EINTR)
            break;
        if (polled[1].revents != 0) {
            char byte[16];
            while (read(wake[0], byte, sizeof byte) > 0) {
            }
        }
        long now = now_ms();
        /* Backwards, because the last one fills the place of one that is done. */
        for (int i = before - 1; i >= 0; i--) {
            struct connection *c = all[i];
            int done = polled[i + 2].revents != 0 ? serve(c) < 0 : now >= c->deadline_ms;
            /* While stopping, a connection between two requests is closed. */
            if (!done && stopping && c->in_length == 0 && c->out_length == 0 && polled[i + 2].revents == 0)
                done = now + DRAIN_MS - 200 >= drained_ms;
            if (done) {
                end(c);
                all[i] = all[--count];
            }
        }
        if (listener >= 0 && polled[0].revents != 0)
            take(listener, all, &count);
    }
    fprintf(stderr, "shop stops\n");
    return 0;
}
