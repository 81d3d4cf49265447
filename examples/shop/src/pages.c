/* What the shop shows. */
#include "pages.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "version.h"

/* Copies `text` with the five characters that mean something in HTML written out. */
static void escape(char *to, size_t size, const char *text)
{
    size_t used = 0;
    for (; *text != '\0'; text++) {
        const char *written = NULL;
        char one[2] = {*text, '\0'};
        switch (*text) {
        case '<': written = "&lt;"; break;
        case '>': written = "&gt;"; break;
        case '&': written = "&amp;"; break;
        case '"': written = "&quot;"; break;
        case '\'': written = "&#39;"; break;
        default: written = one;
        }
        size_t length = strlen(written);
        if (used + length + 1 > size)
            break;
        memcpy(to + used, written, length);
        used += length;
    }
    to[used] = '\0';
}

/* A number from 0 to 999999 given as `name=` in a query; -1 if there is none. */
static long number(const char *query, const char *name)
{
    size_t length = strlen(name);
    while (query != NULL && *query != '\0') {
        if (strncmp(query, name, length) == 0 && query[length] == '=') {
            char *end;
            const char *digits = query + length + 1;
            long value = strtol(digits, &end, 10);
            if (end == digits || (*end != '\0' && *end != '&') || value < 0 || value > 999999)
                return -1;
            return value;
        }
        query = strchr(query, '&');
        if (query != NULL)
            query++;
    }
    return -1;
}

static int is(const char *target, const char *path)
{
    size_t length = strlen(path);
    return strncmp(target, path, length) == 0 && (target[length] == '\0' || target[length] == '?');
}

int page(const char *target, char *body, size_t size, const char **type)
{
    const char *query = strchr(target, '?');
    if (query != NULL)
        query++;
    *type = "text/plain; charset=utf-8";
    if (is(target, "/healthz")) {
        snprintf(body, size, "ok\n");
        return 200;
    }
    if (is(target, "/version")) {
        snprintf(body, size, "%s\n", SHOP_VERSION);
        return 200;
    }
    if (is(target, "/cart")) {
        long price = number(query, "price"), count = number(query, "count");
        *type = "application/json";
        if (price < 0 || count < 0) {
            snprintf(body, size, "{\"error\":\"price and count must be numbers from 0 to 999999\"}\n");
            return 400;
        }
        long total = price * count;
        snprintf(body, size, "{\"total_cents\":%ld,\"total\":\"%ld.%02ld\"}\n", total, total / 100, total % 100);
        return 200;
    }
    if (is(target, "/")) {
        char greeting[1024];
        const char *wanted = getenv("GREETING");
        escape(greeting, sizeof greeting, wanted != NULL ? wanted : "Welcome to the shop");
        *type = "text/html; charset=utf-8";
        snprintf(body, size,
                 "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>shop</title></head>\n"
                 "<body><h1>%s</h1>\n<p>version %s</p></body></html>\n",
                 greeting, SHOP_VERSION);
        return 200;
    }
    snprintf(body, size, "not found\n");
    return 404;
}
