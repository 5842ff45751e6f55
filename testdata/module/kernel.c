int base_value = 3;
int per_cpu_word __attribute__((section(".data..percpu")));
const char linux_banner[] = "Linux version 0.0.0-test (a@b) (gcc) #1";

int base_function(int value)
{
	return value + base_value;
}
