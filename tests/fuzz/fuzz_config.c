/* Any bytes as a configuration file: no crash, an error exactly when refused, and what is accepted can be written and
 * read back as the same settings. */
#include "base/config.h"
#include "base/config_file.h"
#include "base/config_value.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void require(bool truth)
{
    if (!truth)
        abort();
}

static void require_round_trip(const struct kvf_settings *settings)
{
    char *text = NULL, error[1024] = "";
    size_t size = 0;
    struct kvf_settings again;
    FILE *out = open_memstream(&text, &size);
    require(out && kvf_config_file_write(settings, out) == KVF_OK);
    fclose(out);
    kvf_config_value_defaults(&again);
    require(kvf_config_file_parse(&again, "dump", text, size, error, sizeof error));
    require(!memcmp(&again, settings, sizeof again));
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct kvf_settings settings;
    char error[1024] = "";
    kvf_config_value_defaults(&settings);
    if (kvf_config_file_parse(&settings, "input", (const char *)data, bytes, error, sizeof error)) {
        require(!*error);
        require_round_trip(&settings);
    } else {
        require(!strncmp(error, "input:", 6) && memchr(error, 0, sizeof error));
    }
    return 0;
}
