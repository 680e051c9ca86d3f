/* The TCP sockets that a library opened for us and shows to nobody: found through the epoll set that it sleeps on. Linux alone
 * tells what lies in such a set (/proc/self/fdinfo); where it does not, nothing is found and nothing changes. Any thread. */
#ifndef KVF_FABRIC_SOCKETS_H
#define KVF_FABRIC_SOCKETS_H

#define KVF_SOCKETS_NAME_MAX 16 /* of a congestion control, as the kernel has it */

struct kvf_sockets_congestion {
    char system[KVF_SOCKETS_NAME_MAX]; /* what the system gave to the first of the sockets; empty: none was found */
    char used[KVF_SOCKETS_NAME_MAX];   /* what it has now */
    const char *why;                   /* a sentence's end, for people */
};

/* Chooses the congestion control of every connected socket in the epoll set and in the sets in it. On one host there is no wire
 * that could be congested: one that paces what is sent (bbr) halves it, so reno is taken there, which every kernel has and allows
 * to everybody. Between hosts the system's choice stays: it knows the network. */
void kvf_sockets_congestion(int epoll_fd, struct kvf_sockets_congestion *out);
#endif
