#define ID(name) asm(".pushsection .BTF_ids,\"a\"; .local " #name "; .type " #name ", @object; .size " #name ", 4; " #name ": .zero 4; .popsection");
asm(".pushsection .BTF_ids,\"a\"; .local ids; ids:; .popsection");
ID(__BTF_ID__struct__file__14)
ID(__BTF_ID__struct__sock__25)
extern unsigned ids[];
int known(unsigned id) { return id == ids[0] || id == ids[1]; }
