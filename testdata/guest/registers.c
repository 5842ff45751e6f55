// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * A program that shows every register that is not what it should be.
 *
 * Comes in: nothing. Decided: it fills general and vector registers and some flags, runs on without touching them, first in 64-bit
 * code and then in 32-bit code of the same program, and looks at them. Goes out: a line for every few rounds, "right" or "wrong".
 *
 * The program is linked at addresses below 4 GiB, which 32-bit code needs. What 32-bit code cannot name is there all the same.
 */
#include <stdio.h>

/* Gives how many registers were wrong. */
unsigned long registers(unsigned long turns);

/* A stack that 32-bit code can name. */
char low_stack[4096] __attribute__((aligned(16)));
unsigned long other_stack;

/* 0x33, 0x23: code segments of 64-bit and 32-bit programs (arch/x86/include/asm/segment.h). */
__asm__(
"	.set	pattern, 0x5a5a1234c3c30000\n"
"	.macro	expect reg, value\n"
"	movabsq	$\\value, %rdx\n"
"	cmpq	%rdx, \\reg\n"
"	je	1f\n"
"	incq	%rax\n"
"1:\n"
"	.endm\n"
"	.macro	expect_all\n"
	/* Carry and direction are still set. */
"	pushfq\n"
"	cld\n"
"	popq	%rdx\n"
"	notq	%rdx\n"
"	testq	$0x401, %rdx\n"
"	jz	1f\n"
"	incq	%rax\n"
"1:\n"
"	.irp	n, 8, 9, 10, 11, 12, 13, 14, 15\n"
"	expect	%r\\n, pattern+\\n\n"
"	.endr\n"
"	expect	%rbx, pattern+0x20\n"
"	expect	%rbp, pattern+0x21\n"
"	expect	%rsi, pattern+0x22\n"
"	expect	%rdi, pattern+0x23\n"
"	.irp	n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15\n"
"	movq	%xmm\\n, %rcx\n"
"	expect	%rcx, pattern+0x40+\\n\n"
"	punpckhqdq %xmm\\n, %xmm\\n\n"
"	movq	%xmm\\n, %rcx\n"
"	expect	%rcx, pattern+0x80+\\n\n"
"	.endr\n"
"	.endm\n"
"	.macro	fill\n"
"	.irp	n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15\n"
"	movabsq	$pattern+0x80+\\n, %rdx\n"
"	movq	%rdx, %xmm\\n\n"
"	pslldq	$8, %xmm\\n\n"
"	movabsq	$pattern+0x40+\\n, %rdx\n"
"	pushq	$0\n"
"	pushq	%rdx\n"
"	por	(%rsp), %xmm\\n\n"
"	addq	$16, %rsp\n"
"	.endr\n"
"	.irp	n, 8, 9, 10, 11, 12, 13, 14, 15\n"
"	movabsq	$pattern+\\n, %r\\n\n"
"	.endr\n"
"	movabsq	$pattern+0x20, %rbx\n"
"	movabsq	$pattern+0x21, %rbp\n"
"	movabsq	$pattern+0x22, %rsi\n"
"	movabsq	$pattern+0x23, %rdi\n"
"	.endm\n"
"	.text\n"
"	.globl	registers\n"
"registers:\n"
"	pushq	%rbx\n"
"	pushq	%rbp\n"
"	pushq	%r12\n"
"	pushq	%r13\n"
"	pushq	%r14\n"
"	pushq	%r15\n"
"	movq	%rsp, other_stack\n"
"	movl	$low_stack+4096, %esp\n"
"	pushq	%rdi\n"
"	pushq	%rdi\n"
"	fill\n"
"	xorl	%eax, %eax\n"
"	movq	(%rsp), %rcx\n"
"	std\n"
"	stc\n"
"2:	leaq	-1(%rcx), %rcx\n"
"	jrcxz	3f\n"
"	jmp	2b\n"
"3:	expect_all\n"
"	fill\n"
"	movq	(%rsp), %rcx\n"
"	pushq	$0x23\n"
"	pushq	$narrow\n"
"	std\n"
"	stc\n"
"	lretq\n"
"	.code32\n"
"narrow:\n"
"2:	leal	-1(%ecx), %ecx\n"
"	jecxz	3f\n"
"	jmp	2b\n"
"3:	ljmp	$0x33, $wide\n"
"	.code64\n"
"wide:	expect_all\n"
"	movq	other_stack, %rsp\n"
"	popq	%r15\n"
"	popq	%r14\n"
"	popq	%r13\n"
"	popq	%r12\n"
"	popq	%rbp\n"
"	popq	%rbx\n"
"	ret\n"
);

int main(void)
{
	for (;;) {
		unsigned long wrong = 0;

		for (int round = 0; round < 50; round++)
			wrong += registers(50000);
		puts(wrong ? "wrong" : "right");
		fflush(stdout);
	}
}
