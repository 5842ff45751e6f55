struct wire { char tag; int length; } __attribute__((packed)) wire;
