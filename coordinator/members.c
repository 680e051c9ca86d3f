/* Who lives. */
#include "coordinator/internal.h"

#include <stdlib.h>
#include <string.h>

static struct kvf_member_entry *find(struct kvf_members *members, const char *name)
{
    for (unsigned i = 0; i < members->n; i++)
        if (!strcmp(members->list[i].member.name, name))
            return &members->list[i];
    return NULL;
}

static struct kvf_member_entry *add(struct kvf_members *members)
{
    if (members->n == members->size) {
        unsigned size = members->size ? members->size * 2 : 16;
        struct kvf_member_entry *list = size <= KVF_MEMBERS_MAX ? realloc(members->list, size * sizeof *list) : NULL;
        if (!list)
            return NULL;
        members->list = list;
        members->size = size;
    }
    return &members->list[members->n++];
}

static void down(struct kvf_coord *coord, const struct kvf_member *member)
{
    if (coord->handler.member_down)
        coord->handler.member_down(coord->handler.arg, member->name, member->incarnation);
}

void kvf_members_put(struct kvf_coord *coord, const char *name, const struct kvf_store_kv *kv, bool force)
{
    struct kvf_member_entry *entry = find(&coord->members, name);
    struct kvf_member member;
    if (entry) {
        entry->seen = true;
        if (force ? kv->mod_revision == entry->mod_revision : kv->mod_revision <= entry->mod_revision)
            return;
    }
    if (!kvf_records_decode_member(name, kv->value, &member)) {
        kvf_coord_refuse_record(coord, kv->key, kv->mod_revision);
        return;
    }
    if (entry && !memcmp(&entry->member, &member, sizeof member)) { /* put again, as it was */
        entry->mod_revision = kv->mod_revision;
        return;
    }
    if (entry && entry->member.incarnation != member.incarnation)
        down(coord, &entry->member);
    if (!entry && !(entry = add(&coord->members))) {
        kvf_log_error(coord->log, "member %s is ignored: no room for more members", name);
        return;
    }
    *entry = (struct kvf_member_entry){.member = member, .mod_revision = kv->mod_revision, .seen = true};
    if (coord->handler.member_up)
        coord->handler.member_up(coord->handler.arg, &entry->member);
}

/* The entry goes before the handler hears of it; the last takes its place. */
static void take_out(struct kvf_coord *coord, struct kvf_member_entry *entry)
{
    struct kvf_member member = entry->member;
    *entry = coord->members.list[--coord->members.n];
    down(coord, &member);
}

void kvf_members_delete(struct kvf_coord *coord, const char *name, uint64_t revision)
{
    struct kvf_member_entry *entry = find(&coord->members, name);
    if (entry && revision > entry->mod_revision)
        take_out(coord, entry);
    if (!coord->observer && !strcmp(name, coord->self.name))
        kvf_coord_self_removed(coord, revision);
}

void kvf_members_unsee(struct kvf_coord *coord)
{
    for (unsigned i = 0; i < coord->members.n; i++)
        coord->members.list[i].seen = false;
}

void kvf_members_sweep(struct kvf_coord *coord, uint64_t revision)
{
    for (unsigned i = coord->members.n; i-- > 0;) {
        struct kvf_member_entry *entry = &coord->members.list[i];
        if (!entry->seen && entry->mod_revision <= revision)
            take_out(coord, entry);
    }
}

void kvf_members_free(struct kvf_members *members)
{
    free(members->list);
}

const struct kvf_member *kvf_coord_member(const struct kvf_coord *coord, const char *name)
{
    struct kvf_members members = coord->members;
    struct kvf_member_entry *entry = find(&members, name);
    return entry ? &entry->member : NULL;
}

const struct kvf_member *kvf_coord_member_at(const struct kvf_coord *coord, unsigned index)
{
    return index < coord->members.n ? &coord->members.list[index].member : NULL;
}
