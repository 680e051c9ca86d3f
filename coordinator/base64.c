/* Base64. */
#include "coordinator/base64.h"

#include <stdint.h>

void kvf_base64_encode(const void *data, size_t bytes, char *text)
{
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const uint8_t *in = data;
    for (size_t i = 0; i < bytes; i += 3) {
        size_t left = bytes - i;
        uint32_t v = (uint32_t)in[i] << 16;
        if (left > 1)
            v |= (uint32_t)in[i + 1] << 8;
        if (left > 2)
            v |= in[i + 2];
        *text++ = letters[v >> 18];
        *text++ = letters[v >> 12 & 63];
        *text++ = left > 1 ? letters[v >> 6 & 63] : '=';
        *text++ = left > 2 ? letters[v & 63] : '=';
    }
    *text = 0;
}

static int value_of(char c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

bool kvf_base64_decode(const char *text, size_t length, void *data, size_t max, size_t *bytes)
{
    uint8_t *out = data;
    size_t used = 0;
    if (length % 4)
        return false;
    for (size_t i = 0; i < length; i += 4) {
        unsigned pad = 0;
        uint32_t v = 0;
        for (unsigned k = 0; k < 4; k++) {
            char c = text[i + k];
            bool padding = c == '=' && k >= 2 && i + 4 == length;
            if (!padding && pad)
                return false;
            pad += padding;
            int letter = padding ? 0 : value_of(c);
            if (letter < 0)
                return false;
            v = v << 6 | (uint32_t)letter;
        }
        size_t n = 3 - pad;
        if (n > max - used)
            return false;
        for (size_t k = 0; k < n; k++)
            out[used++] = (uint8_t)(v >> (16 - 8 * k));
    }
    *bytes = used;
    return true;
}
