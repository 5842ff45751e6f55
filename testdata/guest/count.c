// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * Counts calls of a kernel function with a BPF program.
 *
 * Usage: count HOW FUNCTION FILE
 *
 * HOW is kprobe, kretprobe, fentry, fexit, or tracepoint; then FUNCTION is the name of a tracepoint. Once the program is attached, the number of calls so far is kept in FILE, as a
 * line of 20 digits; before that FILE does not exist. Ends when it is killed, and the kernel detaches the program.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/btf.h>
#include <linux/perf_event.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ADDRESS(pointer) ((uint64_t)(uintptr_t)(pointer))

static void fail(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(1);
}

static int bpf(int command, union bpf_attr *attr)
{
	return syscall(SYS_bpf, command, attr, sizeof(*attr));
}

static char *read_file(const char *path, size_t *size)
{
	int fd = open(path, O_RDONLY);
	struct stat about;
	char *text;
	ssize_t got;

	if (fd < 0 || fstat(fd, &about))
		fail(path);
	/* Files of sysfs may say a page and give less. */
	text = calloc(1, about.st_size + 1);
	for (*size = 0; *size < (size_t)about.st_size; *size += got) {
		got = read(fd, text + *size, about.st_size - *size);
		if (got <= 0)
			break;
	}
	close(fd);
	return text;
}

/* Number of a function in the kernel's own type information (Documentation/bpf/btf.rst). */
static uint32_t btf_id(const char *function)
{
	size_t size;
	char *data = read_file("/sys/kernel/btf/vmlinux", &size);
	struct btf_header *header = (void *)data;
	char *names = data + header->hdr_len + header->str_off;
	char *at = data + header->hdr_len + header->type_off;
	char *end = at + header->type_len;

	for (uint32_t id = 1; at < end; id++) {
		struct btf_type *type = (void *)at;
		uint32_t entries = BTF_INFO_VLEN(type->info);

		at += sizeof(*type);
		switch (BTF_INFO_KIND(type->info)) {
		case BTF_KIND_FUNC:
			if (!strcmp(names + type->name_off, function))
				return id;
			break;
		case BTF_KIND_INT:
		case BTF_KIND_VAR:
		case BTF_KIND_DECL_TAG:
			at += 4;
			break;
		case BTF_KIND_ARRAY:
			at += sizeof(struct btf_array);
			break;
		case BTF_KIND_STRUCT:
		case BTF_KIND_UNION:
		case BTF_KIND_DATASEC:
		case BTF_KIND_ENUM64:
			at += 12 * entries;
			break;
		case BTF_KIND_ENUM:
		case BTF_KIND_FUNC_PROTO:
			at += 8 * entries;
			break;
		}
	}
	fprintf(stderr, "%s is not among the kernel's types\n", function);
	exit(1);
}

/* A program that adds 1 to the only number of a map. */
static int load(int map, uint32_t type, uint32_t attach, uint32_t function)
{
	static char log[4096];
	struct bpf_insn code[] = {
		{ .code = BPF_ST | BPF_MEM | BPF_W, .dst_reg = BPF_REG_10, .off = -4 },
		{ .code = BPF_ALU64 | BPF_MOV | BPF_X, .dst_reg = BPF_REG_2, .src_reg = BPF_REG_10 },
		{ .code = BPF_ALU64 | BPF_ADD | BPF_K, .dst_reg = BPF_REG_2, .imm = -4 },
		{ .code = BPF_LD | BPF_DW | BPF_IMM, .dst_reg = BPF_REG_1, .src_reg = BPF_PSEUDO_MAP_FD, .imm = map },
		{ 0 },
		{ .code = BPF_JMP | BPF_CALL, .imm = BPF_FUNC_map_lookup_elem },
		{ .code = BPF_JMP | BPF_JEQ | BPF_K, .dst_reg = BPF_REG_0, .off = 2 },
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_1, .imm = 1 },
		{ .code = BPF_STX | BPF_ATOMIC | BPF_DW, .dst_reg = BPF_REG_0, .src_reg = BPF_REG_1, .imm = BPF_ADD },
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0 },
		{ .code = BPF_JMP | BPF_EXIT },
	};
	union bpf_attr attr = {
		.prog_type = type,
		.insns = ADDRESS(code),
		.insn_cnt = sizeof(code) / sizeof(code[0]),
		.license = ADDRESS("GPL"),
		.log_level = 1,
		.log_buf = ADDRESS(log),
		.log_size = sizeof(log),
		.expected_attach_type = attach,
		.attach_btf_id = function,
	};
	int fd = bpf(BPF_PROG_LOAD, &attr);

	if (fd < 0) {
		fprintf(stderr, "%s", log);
		fail("BPF_PROG_LOAD");
	}
	return fd;
}

static void attach_probe(int map, const char *function, int on_return)
{
	size_t size;
	struct perf_event_attr event = {
		.type = atoi(read_file("/sys/bus/event_source/devices/kprobe/type", &size)),
		.size = sizeof(event),
		.config = on_return, /* format/retprobe: config:0 */
		.kprobe_func = ADDRESS(function),
	};
	int fd = syscall(SYS_perf_event_open, &event, -1, 0, -1, PERF_FLAG_FD_CLOEXEC);

	if (fd < 0)
		fail("perf_event_open");
	if (ioctl(fd, PERF_EVENT_IOC_SET_BPF, load(map, BPF_PROG_TYPE_KPROBE, 0, 0)))
		fail("PERF_EVENT_IOC_SET_BPF");
	if (ioctl(fd, PERF_EVENT_IOC_ENABLE, 0))
		fail("PERF_EVENT_IOC_ENABLE");
}

/* To the entry or the return of a function, or, when how is 0, to a tracepoint. */
static void attach_trampoline(int map, const char *function, uint32_t how)
{
	union bpf_attr attr = { 0 };

	if (how) {
		attr.raw_tracepoint.prog_fd = load(map, BPF_PROG_TYPE_TRACING, how, btf_id(function));
	} else {
		attr.raw_tracepoint.prog_fd = load(map, BPF_PROG_TYPE_RAW_TRACEPOINT, 0, 0);
		attr.raw_tracepoint.name = ADDRESS(function);
	}
	if (bpf(BPF_RAW_TRACEPOINT_OPEN, &attr) < 0)
		fail("BPF_RAW_TRACEPOINT_OPEN");
}

int main(int argc, char **argv)
{
	union bpf_attr map = { .map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 8, .max_entries = 1 };
	uint32_t key = 0;
	uint64_t calls;
	union bpf_attr lookup = { .key = ADDRESS(&key), .value = ADDRESS(&calls) };
	int numbers, out;

	if (argc != 4) {
		fprintf(stderr, "usage: %s kprobe|kretprobe|fentry|fexit|tracepoint FUNCTION FILE\n", argv[0]);
		return 2;
	}
	numbers = bpf(BPF_MAP_CREATE, &map);
	if (numbers < 0)
		fail("BPF_MAP_CREATE");
	if (!strcmp(argv[1], "fentry"))
		attach_trampoline(numbers, argv[2], BPF_TRACE_FENTRY);
	else if (!strcmp(argv[1], "fexit"))
		attach_trampoline(numbers, argv[2], BPF_TRACE_FEXIT);
	else if (!strcmp(argv[1], "tracepoint"))
		attach_trampoline(numbers, argv[2], 0);
	else
		attach_probe(numbers, argv[2], !strcmp(argv[1], "kretprobe"));
	lookup.map_fd = numbers;
	out = open(argv[3], O_CREAT | O_TRUNC | O_WRONLY, 0644);
	if (out < 0)
		fail(argv[3]);
	for (;;) {
		char line[32];

		if (bpf(BPF_MAP_LOOKUP_ELEM, &lookup))
			fail("BPF_MAP_LOOKUP_ELEM");
		if (pwrite(out, line, sprintf(line, "%020llu\n", (unsigned long long)calls), 0) < 0)
			fail(argv[3]);
		usleep(10000);
	}
}
