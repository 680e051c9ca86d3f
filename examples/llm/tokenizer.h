/* Byte-level BPE as GPT-2 and its descendants use it, from the tables of a GGUF file: text to token ids and back.
 *
 * A text is cut into words (by the GPT-2 rule; with the "smollm" pre-tokenizer each digit first becomes a word of its own),
 * each byte of a word becomes a token, and the pair of neighbours that stands first in the list of merges is joined
 * until no pair is in the list. */
#ifndef LLM_TOKENIZER_H
#define LLM_TOKENIZER_H

#include "gguf.h"

struct llm_tokenizer;

/* Builds the tables; the GGUF file must stay open as long as the tokenizer lives (token texts lie in it). */
bool llm_tokenizer_create(const struct llm_gguf *gguf, struct llm_tokenizer **out, struct llm_error *error);
void llm_tokenizer_destroy(struct llm_tokenizer *tokenizer);

/* Number of tokens, and the id that ends a text (-1 when the file names none). */
uint32_t llm_tokenizer_size(const struct llm_tokenizer *tokenizer);
int32_t llm_tokenizer_end(const struct llm_tokenizer *tokenizer);

/* Ids of a text. With `specials` control tokens written in the text ("<|im_end|>") become their ids; without, they are
 * plain text, which is right for text from outside. *out is malloc'ed. false when out of memory. */
bool llm_tokenizer_encode(const struct llm_tokenizer *tokenizer, const char *text, size_t length, bool specials, int32_t **out,
                          size_t *count);

/* Writes the bytes of one token, at most `size`, and returns how many; 0 for an id that does not exist. A character may be
 * spread over several tokens. */
size_t llm_tokenizer_decode(const struct llm_tokenizer *tokenizer, int32_t token, char *out, size_t size);

/* Length of the first word of `length` > 0 bytes of text by the rule above: the cutter alone (tests). */
size_t llm_words_next(const char *text, size_t length, bool single_digits);
#endif
