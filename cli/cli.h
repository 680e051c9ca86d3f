/* What the verbs of `kvf` share: options, exit codes, one-line errors. */
#ifndef KVF_CLI_CLI_H
#define KVF_CLI_CLI_H

#include "base/config.h"

enum kvf_cli_exit { KVF_EXIT_DONE, KVF_EXIT_FAILED, KVF_EXIT_USAGE, KVF_EXIT_CLUSTER };

struct kvf_cli {
    const char *verb;
    struct kvf_config *config; /* file, environment and options read; etcd.endpoints is never empty */
    bool json;
    uint64_t timeout_ns;       /* of the whole verb */
    char flags[16];            /* the verb's own one-letter flags, in the order given */
    char **args;               /* what is no option, after the verb */
    unsigned n_args;
};

/* The verbs: each returns an exit code and has printed its answer, or one line of error. */
int kvf_cmd_status(struct kvf_cli *cli);
int kvf_cmd_sessions(struct kvf_cli *cli);
int kvf_cmd_move(struct kvf_cli *cli);
int kvf_cmd_lend(struct kvf_cli *cli);
int kvf_cmd_drain(struct kvf_cli *cli);
int kvf_cmd_info(struct kvf_cli *cli);
int kvf_cmd_peer(struct kvf_cli *cli); /* info -p */

/* Prints "kvf VERB: ..." to standard error and returns `code`. */
int kvf_cli_fail(const struct kvf_cli *cli, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));
#endif
