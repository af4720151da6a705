/* A test double of wevtapi.dll: Wine's Event Log is a stub. It tests that the agent calls the functions as they
 * are declared, not what Windows does behind them.
 *
 * A channel is a file, C:\events\CHANNEL.txt, with an event a line: RECORD-ID TAB XML. One whose XML names the
 * provider "Known" has a text. A subscription polls; it does not signal. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <wchar.h>
#include <windows.h>

#define API __declspec(dllexport)
enum { AFTER_BOOKMARK = 3, STRICTLY = 0x10000 };
enum { RENDER_XML = 1, RENDER_BOOKMARK = 2 };
enum { CHANNEL_NOT_FOUND = 15007 };

typedef struct {
    enum { SUBSCRIPTION = 1, EVENT, BOOKMARK, PUBLISHER } kind;
    unsigned long long id; /* the last one read; the event's; the bookmark's */
    WCHAR path[MAX_PATH];
    char *xml;
} Object;

enum { LINE_MAX_LEN = 1 << 20 };

static Object *make(int kind) {
    Object *object = calloc(1, sizeof *object);
    object->kind = kind;
    return object;
}

/* The first event of a file with an id above `after`, or the one with exactly `exactly`. */
static Object *find(const WCHAR *path, unsigned long long after, unsigned long long exactly) {
    /* Each channel is read by a thread of its own. */
    char *line = malloc(LINE_MAX_LEN);
    Object *found = NULL;
    FILE *file = _wfopen(path, L"rb");
    if (!file) return free(line), NULL;
    while (!found && fgets(line, LINE_MAX_LEN, file)) {
        char *tab = strchr(line, '\t'), *end = strchr(line, '\n');
        if (!tab || !end) break; /* not complete yet */
        unsigned long long id = strtoull(line, NULL, 10);
        if (exactly ? id != exactly : id <= after) continue;
        *end = 0;
        found = make(EVENT);
        found->id = id;
        found->xml = strdup(tab + 1);
    }
    fclose(file);
    free(line);
    return found;
}

API Object *WINAPI EvtCreateBookmark(const WCHAR *xml) {
    Object *bookmark = make(BOOKMARK);
    const WCHAR *id = xml ? wcsstr(xml, L"RecordId='") : NULL;
    if (xml && !id) {
        free(bookmark);
        SetLastError(ERROR_INVALID_DATA);
        return NULL;
    }
    if (id) bookmark->id = wcstoull(id + 10, NULL, 10);
    return bookmark;
}

API BOOL WINAPI EvtUpdateBookmark(Object *bookmark, Object *event) {
    if (bookmark->kind != BOOKMARK || event->kind != EVENT) return SetLastError(ERROR_INVALID_HANDLE), FALSE;
    bookmark->id = event->id;
    return TRUE;
}

API Object *WINAPI EvtSubscribe(void *session, HANDLE signal, const WCHAR *channel, const WCHAR *query, Object *bookmark,
                                void *context, void *callback, DWORD flags) {
    Object *own = make(SUBSCRIPTION);
    swprintf(own->path, MAX_PATH, L"C:\\events\\%ls.txt", channel);
    if (GetFileAttributesW(own->path) == INVALID_FILE_ATTRIBUTES) {
        free(own);
        return SetLastError(CHANNEL_NOT_FOUND), NULL;
    }
    if ((flags & 0xffff) == AFTER_BOOKMARK) {
        Object *last = find(own->path, 0, bookmark->id);
        if (!last && (flags & STRICTLY)) {
            free(own);
            return SetLastError(ERROR_NOT_FOUND), NULL;
        }
        own->id = bookmark->id;
        if (last) free(last->xml), free(last);
    }
    return own;
}

API BOOL WINAPI EvtNext(Object *subscription, DWORD count, Object **events, DWORD timeout, DWORD flags, DWORD *returned) {
    *returned = 0;
    while (*returned < count) {
        Object *event = find(subscription->path, subscription->id, 0);
        if (!event) break;
        subscription->id = event->id;
        events[(*returned)++] = event;
    }
    return *returned ? TRUE : (SetLastError(ERROR_NO_MORE_ITEMS), FALSE);
}

API BOOL WINAPI EvtRender(void *context, Object *fragment, DWORD flags, DWORD size, WCHAR *buffer, DWORD *used, DWORD *count) {
    char bookmark[256];
    const char *text = fragment->xml;
    if (flags == RENDER_BOOKMARK) {
        snprintf(bookmark, sizeof bookmark, "<BookmarkList>\r\n  <Bookmark Channel='X' RecordId='%llu' IsCurrent='true'/>\r\n</BookmarkList>", fragment->id);
        text = bookmark;
    }
    *used = MultiByteToWideChar(CP_UTF8, 0, text, -1, NULL, 0) * sizeof(WCHAR);
    *count = 0;
    if (size < *used) return SetLastError(ERROR_INSUFFICIENT_BUFFER), FALSE;
    MultiByteToWideChar(CP_UTF8, 0, text, -1, buffer, size / sizeof(WCHAR));
    return TRUE;
}

API Object *WINAPI EvtOpenPublisherMetadata(void *session, const WCHAR *name, const WCHAR *file, DWORD locale, DWORD flags) {
    if (wcscmp(name, L"Known")) return SetLastError(ERROR_FILE_NOT_FOUND), NULL;
    return make(PUBLISHER);
}

API BOOL WINAPI EvtFormatMessage(Object *publisher, Object *event, DWORD id, DWORD count, void *values, DWORD flags, DWORD size,
                                 WCHAR *buffer, DWORD *used) {
    WCHAR text[64];
    *used = swprintf(text, 64, L"Something known happened: %llu.\r\n", event->id) + 1;
    if (size < *used) return SetLastError(ERROR_INSUFFICIENT_BUFFER), FALSE;
    wcscpy(buffer, text);
    return TRUE;
}

API BOOL WINAPI EvtClose(Object *object) {
    if (object->kind == EVENT) free(object->xml);
    free(object);
    return TRUE;
}
