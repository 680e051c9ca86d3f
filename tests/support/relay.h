/* A TCP relay in front of an etcd, for tests of what a network does to one connection and not to the others: watches can be
 * silenced, as if a middlebox had forgotten them. Both ends stay open and take what is sent to them; no error tells anybody.
 *
 *     struct kvf_test_relay *relay = kvf_test_relay_start(kvf_test_etcd_url(etcd));
 *     ... kvf_test_relay_url(relay) as an endpoint ...
 *     kvf_test_relay_silence_watches(relay);
 *     kvf_test_relay_stop(relay);
 *
 * It forwards in a thread of its own; the calls come from one other thread. Without TLS: a watch is known by its request. */
#ifndef KVF_TESTS_SUPPORT_RELAY_H
#define KVF_TESTS_SUPPORT_RELAY_H

struct kvf_test_relay;

/* url: "http://127.0.0.1:PORT". NULL: a socket or the thread could not be had. */
struct kvf_test_relay *kvf_test_relay_start(const char *url);
/* The same form, with the relay's port. */
const char *kvf_test_relay_url(const struct kvf_test_relay *relay);

/* From the return on, the watches that are open now are told nothing more; those that are opened later are. Returns how many. */
unsigned kvf_test_relay_silence_watches(struct kvf_test_relay *relay);
/* How many watches were ever opened, and how many of the silenced ones are open still. */
unsigned kvf_test_relay_watches(struct kvf_test_relay *relay);
unsigned kvf_test_relay_silenced(struct kvf_test_relay *relay);

/* Closes everything. NULL is fine. */
void kvf_test_relay_stop(struct kvf_test_relay *relay);
#endif
