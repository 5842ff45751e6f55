struct buffer { char *next; int used; char bytes[16]; };
static struct buffer buffer = { buffer.bytes };
void put(char c) { *buffer.next++ = c; buffer.used++; }
