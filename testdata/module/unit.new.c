extern int base_value;
extern int base_function(int value);
extern int other_export(int value);
extern int per_cpu_word __attribute__((section(".data..percpu")));

static int state = 7;
static int zero;
static int own __attribute__((section(".data..percpu")));
static const char text[] = "modular";

__attribute__((noinline)) static int inner(int value)
{
	return value * state + base_value;
}

int module_function(int value)
{
	int result;

	asm volatile("1: .byte 0x0f, 0x1f, 0x44, 0, 0\n2:\n"
		     ".pushsection .altinstructions, \"a\"\n"
		     ".long 1b - ., 3f - .\n"
		     ".word 3\n"
		     ".byte 2b - 1b, 4f - 3f\n"
		     ".popsection\n"
		     ".pushsection .altinstr_replacement, \"ax\"\n"
		     "3: call base_function\n4:\n"
		     ".popsection\n");
	result = inner(value) + other_export(base_function(value + 1)) + text[value & 3];
	asm volatile("movl %%gs:%1, %0" : "=r"(zero) : "m"(own));
	return result;
}

int plain(int value)
{
	return value + 1;
}
