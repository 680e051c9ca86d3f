/* llm --record FILE: writes which chunks every attend under a budget chose, and the scores of all, as a selection log
 * (docs/FORMAT.md) that `kvf bench policy` replays. */
#ifndef LLM_RECORD_H
#define LLM_RECORD_H

#include "error.h"

#include <kvf/kvf.h>
#include <stdio.h>

struct llm_record {
    FILE *file;
    uint32_t steps, layer, head; /* of the last record */
    uint64_t first, bytes;
    bool begun, failed;
};

/* Creates the file and writes its head; from now on the session's attends are recorded. */
bool llm_record_start(struct llm_record *r, const char *path, const struct kvf_model_desc *model, float budget,
                      struct kvf_session *session, struct llm_error *error);
/* Ends the file. False when something could not be written. `session` NULL: it is gone already. */
bool llm_record_end(struct llm_record *r, struct kvf_session *session, struct llm_error *error);
#endif
