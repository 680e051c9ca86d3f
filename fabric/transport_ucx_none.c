/* In place of transport_ucx.c where UCX is not built in. */
#include "fabric/transport.h"

enum kvf_status kvf_transport_ucx_create(const struct kvf_transport_config *config, struct kvf_transport **out)
{
    kvf_log_error(config->log, "fabric.transport = %s needs UCX, which this build does not have (make UCX=1)", config->kind);
    return KVF_ERR_UNSUPPORTED;
}

enum kvf_status kvf_transport_ucx_settings(const struct kvf_transport_config *config, char *text, size_t size)
{
    return KVF_ERR_UNSUPPORTED;
}

void kvf_transport_ucx_about(char *text, size_t size)
{
    snprintf(text, size, "not built in: pkg-config found no ucx, or make had UCX=0");
}

void kvf_transport_ucx_sizes(size_t *link_bytes, size_t *operation_bytes)
{
    *link_bytes = *operation_bytes = 0;
}
