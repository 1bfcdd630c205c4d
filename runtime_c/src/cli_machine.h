/* cli_machine.h: what this machine can do at most, measured. */
#ifndef NANO_CLI_MACHINE_H
#define NANO_CLI_MACHINE_H

#include "cli.h"

/* Bytes read in a second: the best of several readings of a buffer in big pages that no cache holds, of
 * *bytes. 0: no memory for it. */
double machine_bandwidth(unsigned threads, unsigned runs, uint64_t *bytes);

/* Multiply-adds in a second of the instruction that these kernels use for weights of at most 8 bits
 * (`integers`) or for others; the best of several runs. 0: not known, as of plain C; *instruction is "" then.
 */
double machine_peak(const char *kernels, bool integers, unsigned threads, unsigned runs,
                    const char **instruction);

/* The share of this memory that lies in big pages; negative: the system does not say. */
double machine_big_pages(const void *memory, uint64_t bytes);

#endif
