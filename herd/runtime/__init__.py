"""Floor 1: what the machine is: device, dtype, threads, memory, power, and the process group once there is one."""
