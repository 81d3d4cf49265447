/* The service of the tests: HTTP/1.1 with keep-alive, a thread per connection. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static void answer(int fd, int status, const char *body) {
    char head[256];
    int n = snprintf(head, sizeof head, "HTTP/1.1 %d X\r\nContent-Length: %zu\r\n\r\n", status, strlen(body));
    if (write(fd, head, n) < 0 || write(fd, body, strlen(body)) < 0) return;
}

static void *serve(void *arg) {
    int fd = (int)(long)arg;
    char *name = getenv("NAME") ? getenv("NAME") : "none";
    static __thread char buf[65536];
    size_t have = 0;
    for (;;) {
        char *end;
        buf[have] = 0;
        while (!(end = strstr(buf, "\r\n\r\n"))) {
            ssize_t n = read(fd, buf + have, sizeof buf - 1 - have);
            if (n <= 0) goto out;
            have += n;
            buf[have] = 0;
        }
        size_t head = end - buf + 4, length = 0;
        char *cl = strcasestr(buf, "content-length:");
        if (cl && cl < end) length = strtoul(cl + 15, 0, 10);
        while (have < head + length && have < sizeof buf - 1) {
            ssize_t n = read(fd, buf + have, sizeof buf - 1 - have);
            if (n <= 0) goto out;
            have += n;
        }
        char path[256] = "", text[4096];
        sscanf(buf, "%*s %255s", path);
        char *query = strchr(path, '?');
        if (query) *query++ = 0;
        if (!strcmp(path, "/health")) {
            answer(fd, getenv("SICK") ? 500 : 200, "ok");
        } else if (!strcmp(path, "/slow")) {
            usleep(700 * 1000);
            answer(fd, 200, name);
        } else if (!strcmp(path, "/crash")) {
            _exit(3);
        } else if (!strcmp(path, "/say")) {
            printf("said %s\n", query);
            fflush(stdout);
            answer(fd, 200, "said");
        } else if (!strcmp(path, "/echo")) {
            dprintf(fd, "HTTP/1.1 200 X\r\nContent-Length: %zu\r\n\r\n", length);
            if (write(fd, buf + head, length) < 0) goto out;
        } else if (!strcmp(path, "/headers")) {
            *end = 0;
            answer(fd, 200, buf);
        } else if (!strcmp(path, "/upgrade")) {
            dprintf(fd, "HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n");
            ssize_t n;
            while ((n = read(fd, buf, sizeof buf)) > 0)
                if (write(fd, buf, n) < 0) break;
            goto out;
        } else if (!strcmp(path, "/stream")) {
            dprintf(fd, "HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n");
            for (int i = 0; i < 3; i++) {
                dprintf(fd, "1\r\n%d\r\n", i);
                usleep(200 * 1000);
            }
            dprintf(fd, "0\r\n\r\n");
        } else if (!strcmp(path, "/see")) {
            snprintf(text, sizeof text, "%s", access(query, F_OK) ? strerror(errno) : "seen");
            answer(fd, 200, text);
        } else if (!strcmp(path, "/write")) {
            FILE *f = fopen(query, "w");
            snprintf(text, sizeof text, "%s", f ? "written" : strerror(errno));
            answer(fd, 200, text);
        } else if (!strcmp(path, "/fork")) {
            int wanted = atoi(query), made = 0;
            pid_t *children = calloc(wanted, sizeof *children);
            while (made < wanted && (children[made] = fork()) > 0) made++;
            if (made < wanted && children[made] == 0)
                for (;;) pause();
            snprintf(text, sizeof text, "%d", made);
            for (int i = 0; i < made; i++) kill(children[i], SIGKILL);
            for (int i = 0; i < made; i++) waitpid(children[i], 0, 0);
            free(children);
            answer(fd, 200, text);
        } else if (!strcmp(path, "/tcp")) {
            struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(query))};
            to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
            int s = socket(AF_INET, SOCK_STREAM, 0);
            snprintf(text, sizeof text, "%s", connect(s, (void *)&to, sizeof to) ? strerror(errno) : "connected");
            close(s);
            answer(fd, 200, text);
        } else {
            answer(fd, 200, name);
        }
        memmove(buf, buf + head + length, have - head - length);
        have -= head + length;
    }
out:
    close(fd);
    return 0;
}

int main(void) {
    signal(SIGPIPE, SIG_IGN);
    if (getenv("EXIT")) {
        fprintf(stderr, "told to exit\n");
        return 7;
    }
    int s = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(getenv("LISTEN") ? getenv("LISTEN") : getenv("PORT")))};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(s, (void *)&at, sizeof at) || listen(s, 512)) return 1;
    printf("listening\n");
    fflush(stdout);
    for (;;) {
        int c = accept(s, 0, 0);
        if (c < 0) continue;
        pthread_t t;
        pthread_attr_t a;
        pthread_attr_init(&a);
        pthread_attr_setdetachstate(&a, PTHREAD_CREATE_DETACHED);
        pthread_attr_setstacksize(&a, 256 * 1024);
        if (pthread_create(&t, &a, serve, (void *)(long)c)) close(c);
    }
}
