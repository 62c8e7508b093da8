/* What sepconv needs of MPI, as a table of functions with plain C types. Handles and constants of MPI differ between
 * Open MPI, MPICH and their versions, so mpi.h is included by shim.c alone, which is compiled on the machine that it
 * runs on (src/distributed/shim.ts); the addon loads it with dlopen and never sees mpi.h. Functions return 0, or an
 * error code of MPI that `error` puts into words. Every function is called by one thread, the one that called init. */
#ifndef SEPCONV_MPI_SHIM_H
#define SEPCONV_MPI_SHIM_H

#define SEPCONV_MPI_ABI 2

/* Streams of collective calls that do not wait for each other: those of running programs, and those of the event loop.
 * Within a stream every rank makes the same calls in the same order. */
enum { SEPCONV_MPI_DATA = 0, SEPCONV_MPI_CONTROL = 1, SEPCONV_MPI_STREAMS = 2 };

struct sepconv_mpi {
  int abi;
  /* The library that the shim was compiled for: "Open MPI 4.1.4", "MPICH 4.0.2". */
  const char* compiled;
  /* Starts MPI. thread: 0 single, 1 funneled, 2 serialized, 3 multiple. -1: MPI is running already. */
  int (*init)(int* thread);
  int (*finalize)(void);
  void (*abort)(int status);
  /* What the loaded library says of itself. */
  void (*library)(char* text, int capacity);
  int (*rank)(void);
  int (*size)(void);
  /* Among the ranks that share memory with this one. */
  int (*local_rank)(void);
  int (*local_size)(void);
  void (*error)(int code, char* text, int capacity);

  /* Gives every rank a segment of memory that all ranks can reach, where they are on one machine: called once, by all
   * of them. segments: one address per rank. Not 0 on every rank where one could not. */
  int (*share)(long bytes, void** segments);
  /* Makes what others wrote to their segments before a barrier visible, and what this rank wrote to its own. */
  void (*fence)(void);

  /* Each begins an operation whose memory must stay until `test` has said that it is done. */
  int (*all_reduce)(int stream, float* values, long count, void** request);
  int (*barrier)(int stream, void** request);
  int (*all_gather)(int stream, const void* own, void* all, long bytes, void** request);
  int (*gather)(int stream, const void* own, void* all, long bytes, void** request); /* to rank 0 */
  int (*broadcast)(int stream, void* bytes_of_rank_0, long bytes, void** request);
  int (*send)(const void* bytes, long count, int to, int tag, void** request);
  /* A message that can be received now: 1 and what it is, or 0. */
  int (*probe)(int* from, int* tag, long* bytes);
  /* Receives what `probe` has found; waits for the rest of it. */
  int (*receive)(void* bytes, long count, int from, int tag);
  /* Done: frees the request. */
  int (*test)(void* request, int* done);
};

#endif
