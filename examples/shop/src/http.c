/* HTTP/1.1, as much as a browser, curl and a load tester need: GET and HEAD, keep-alive,
 * pipelining. Requests with a body are answered and the connection closed. */
#include "http.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "pages.h"

static const char *reason(int status)
{
    switch (status) {
    case 200: return "OK";
    case 400: return "Bad Request";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 431: return "Request Header Fields Too Large";
    default: return "Error";
    }
}

int http_respond(struct connection *c, int status, const char *type, const char *body, size_t length, int head)
{
    char header[256];
    int written = snprintf(header, sizeof header,
                           "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\nCache-Control: no-store\r\n"
                           "Connection: %s\r\n\r\n",
                           status, reason(status), type, length, c->close_after ? "close" : "keep-alive");
    size_t body_length = head ? 0 : length;
    if (written < 0 || (size_t)written >= sizeof header ||
        c->out_length + (size_t)written + body_length > sizeof c->out)
        return -1;
    memcpy(c->out + c->out_length, header, (size_t)written);
    memcpy(c->out + c->out_length + written, body, body_length);
    c->out_length += (size_t)written + body_length;
    return 0;
}

/* The value of a header in `head` (a string), or NULL. `length` gets its length. */
static const char *header(const char *head, const char *name, size_t *length)
{
    size_t name_length = strlen(name);
    for (const char *line = strstr(head, "\r\n"); line != NULL; line = strstr(line, "\r\n")) {
        line += 2;
        if (strncasecmp(line, name, name_length) == 0 && line[name_length] == ':') {
            const char *value = line + name_length + 1;
            value += strspn(value, " \t");
            *length = strcspn(value, "\r");
            return value;
        }
    }
    return NULL;
}

static int header_is(const char *head, const char *name, const char *value)
{
    size_t length = 0;
    const char *found = header(head, name, &length);
    return found != NULL && length == strlen(value) && strncasecmp(found, value, length) == 0;
}

/* Answers the request whose head is the string `head`. */
static int answer(struct connection *c, char *head, int stopping)
{
    char method[8], target[1024], version[16], body[4096];
    size_t length = 0;
    const char *type = "text/plain; charset=utf-8";
    if (sscanf(head, "%7s %1023s %15s", method, target, version) != 3 || strncmp(version, "HTTP/1.", 7) != 0) {
        c->close_after = 1;
        return http_respond(c, 400, type, "bad request\n", 12, 0);
    }
    int has_body = header(head, "Transfer-Encoding", &length) != NULL ||
                   (header(head, "Content-Length", &length) != NULL && !header_is(head, "Content-Length", "0"));
    int old = strcmp(version, "HTTP/1.0") == 0;
    c->close_after = stopping || has_body || header_is(head, "Connection", "close") ||
                     (old && !header_is(head, "Connection", "keep-alive"));
    int is_head = strcmp(method, "HEAD") == 0;
    if (!is_head && strcmp(method, "GET") != 0)
        return http_respond(c, 405, type, "only GET and HEAD\n", 18, 0);
    int status = page(target, body, sizeof body, &type);
    return http_respond(c, status, type, body, strlen(body), is_head);
}

int http_answer(struct connection *c, int stopping)
{
    /* Room for one more response of the largest kind, or the rest waits until this is sent. */
    while (!c->close_after && c->out_length + 4096 + 256 <= sizeof c->out) {
        char *end = memmem(c->in, c->in_length, "\r\n\r\n", 4);
        if (end == NULL) {
            if (c->in_length == sizeof c->in) {
                c->close_after = 1;
                if (http_respond(c, 431, "text/plain", "too large\n", 10, 0) < 0)
                    return -1;
            }
            break;
        }
        size_t used = (size_t)(end - c->in) + 4;
        end[2] = '\0'; /* keep the last CR LF: every header line ends with one */
        if (memchr(c->in, '\0', used - 2) != NULL)
            return -1;
        if (answer(c, c->in, stopping) < 0)
            return -1;
        memmove(c->in, c->in + used, c->in_length - used);
        c->in_length -= used;
    }
    return c->out_length > c->out_sent;
}
