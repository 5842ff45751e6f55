/*
 * Memory for khugepaged: each request is answered by 8 MiB of small pages that may become huge ones.
 * A line on standard input asks for more; each answer is the number of blocks.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <sys/mman.h>

#define HUGE (2UL << 20)
#define BLOCK (4 * HUGE)

int main(void)
{
	char line[80];
	int blocks = 0;

	while (fgets(line, sizeof(line), stdin)) {
		char *at = mmap(NULL, BLOCK + HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (at == MAP_FAILED)
			return 1;
		at = (char *)(((unsigned long)at + HUGE - 1) & ~(HUGE - 1));
		if (madvise(at, BLOCK, MADV_NOHUGEPAGE))
			return 2;
		for (unsigned long offset = 0; offset < BLOCK; offset += 4096)
			at[offset] = 1;
		if (madvise(at, BLOCK, MADV_HUGEPAGE))
			return 3;
		printf("%d\n", ++blocks);
		fflush(stdout);
	}
	return 0;
}
