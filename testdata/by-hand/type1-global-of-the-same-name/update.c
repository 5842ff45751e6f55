#include <linux/percpu.h>
#include <linux/sched/stat.h>
#include <lucos.h>

int nr_processes(void)
{
	int cpu, total = 0;

	for_each_possible_cpu(cpu)
		total += per_cpu(process_counts, cpu);
	return total;
}
LUCOS_REPLACE(nr_processes, nr_processes);
