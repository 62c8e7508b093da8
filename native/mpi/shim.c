/* See shim.h. Compiled by mpicc into a shared library. */
#include "shim.h"

#include <limits.h>
#include <mpi.h>
#include <stdlib.h>

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)
#if defined(OMPI_MAJOR_VERSION)
#define COMPILED "Open MPI " TEXT(OMPI_MAJOR_VERSION) "." TEXT(OMPI_MINOR_VERSION) "." TEXT(OMPI_RELEASE_VERSION)
#elif defined(MPICH_VERSION)
#define COMPILED "MPICH " MPICH_VERSION
#else
#define COMPILED "MPI " TEXT(MPI_VERSION) "." TEXT(MPI_SUBVERSION)
#endif

static MPI_Comm streams[SEPCONV_MPI_STREAMS];
static MPI_Comm messages; /* point to point */
static MPI_Comm local;    /* the ranks of this machine */
static MPI_Win window = MPI_WIN_NULL;

static int init(int* thread) {
  int running = 0, code = MPI_Initialized(&running);
  if (code != MPI_SUCCESS) return code;
  if (running) return -1;
  int provided = 0;
  code = MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided);
  if (code != MPI_SUCCESS) return code;
  *thread = provided >= MPI_THREAD_MULTIPLE     ? 3
            : provided >= MPI_THREAD_SERIALIZED ? 2
            : provided >= MPI_THREAD_FUNNELED   ? 1
                                                : 0;
  /* Errors are returned, so that the rank which met one can be named. */
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  for (int i = 0; i < SEPCONV_MPI_STREAMS; ++i)
    if ((code = MPI_Comm_dup(MPI_COMM_WORLD, &streams[i])) != MPI_SUCCESS) return code;
  if ((code = MPI_Comm_dup(MPI_COMM_WORLD, &messages)) != MPI_SUCCESS) return code;
  return MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &local);
}

static int finalize(void) {
  if (window != MPI_WIN_NULL) {
    MPI_Win_unlock_all(window);
    MPI_Win_free(&window);
  }
  for (int i = 0; i < SEPCONV_MPI_STREAMS; ++i) MPI_Comm_free(&streams[i]);
  MPI_Comm_free(&messages);
  MPI_Comm_free(&local);
  return MPI_Finalize();
}

static void abort_all(int status) { MPI_Abort(MPI_COMM_WORLD, status); }

static void library(char* text, int capacity) {
  char all[MPI_MAX_LIBRARY_VERSION_STRING];
  int length = 0;
  MPI_Get_library_version(all, &length);
  int i = 0;
  for (; i < length && i < capacity - 1 && all[i] != '\n'; ++i) text[i] = all[i];
  text[i] = 0;
}

static int rank_in(MPI_Comm comm) {
  int rank = 0;
  MPI_Comm_rank(comm, &rank);
  return rank;
}

static int size_of(MPI_Comm comm) {
  int size = 1;
  MPI_Comm_size(comm, &size);
  return size;
}

static int rank(void) { return rank_in(MPI_COMM_WORLD); }
static int size(void) { return size_of(MPI_COMM_WORLD); }
static int local_rank(void) { return rank_in(local); }
static int local_size(void) { return size_of(local); }

static int share(long bytes, void** segments) {
  void* own = NULL;
  int code = MPI_Win_allocate_shared((MPI_Aint)bytes, 1, MPI_INFO_NULL, local, &own, &window);
  if (code != MPI_SUCCESS) window = MPI_WIN_NULL;
  const int size = local_size();
  for (int i = 0; i < size && code == MPI_SUCCESS; ++i) {
    MPI_Aint length = 0;
    int unit = 0;
    code = MPI_Win_shared_query(window, i, &length, &unit, &segments[i]);
  }
  if (code == MPI_SUCCESS) code = MPI_Win_lock_all(MPI_MODE_NOCHECK, window);
  int mine = code != MPI_SUCCESS, any = 0;
  const int agreed = MPI_Allreduce(&mine, &any, 1, MPI_INT, MPI_MAX, local);
  if (agreed != MPI_SUCCESS || any) window = MPI_WIN_NULL; /* freeing it would take all ranks */
  return agreed != MPI_SUCCESS ? agreed : code != MPI_SUCCESS ? code : any ? MPI_ERR_OTHER : 0;
}

static void fence(void) { MPI_Win_sync(window); }

static void error_text(int code, char* text, int capacity) {
  char all[MPI_MAX_ERROR_STRING] = "unknown error";
  int length = 0;
  if (MPI_Error_string(code, all, &length) != MPI_SUCCESS) length = 13;
  int i = 0;
  for (; i < length && i < capacity - 1; ++i) text[i] = all[i];
  text[i] = 0;
}

/* MPI counts in int. */
static int fits(long count) { return count >= 0 && count <= INT_MAX; }

/* The request lives on the heap, since its type is MPI's own. */
#define BEGIN(count)                        \
  if (!fits(count)) return MPI_ERR_COUNT;   \
  MPI_Request* made = malloc(sizeof *made); \
  if (!made) return MPI_ERR_NO_MEM;         \
  *request = made;                          \
  int code =
#define END                            \
  ;                                    \
  if (code != MPI_SUCCESS) free(made); \
  return code;

static int all_reduce(int stream, float* values, long count, void** request) {
  BEGIN(count) MPI_Iallreduce(MPI_IN_PLACE, values, (int)count, MPI_FLOAT, MPI_SUM, streams[stream], made) END
}

static int barrier(int stream, void** request) { BEGIN(0) MPI_Ibarrier(streams[stream], made) END }

static int all_gather(int stream, const void* own, void* all, long bytes, void** request) {
  BEGIN(bytes) MPI_Iallgather(own, (int)bytes, MPI_BYTE, all, (int)bytes, MPI_BYTE, streams[stream], made) END
}

static int gather(int stream, const void* own, void* all, long bytes, void** request) {
  BEGIN(bytes) MPI_Igather(own, (int)bytes, MPI_BYTE, all, (int)bytes, MPI_BYTE, 0, streams[stream], made) END
}

static int broadcast(int stream, void* bytes_of_rank_0, long bytes, void** request) {
  BEGIN(bytes) MPI_Ibcast(bytes_of_rank_0, (int)bytes, MPI_BYTE, 0, streams[stream], made) END
}

static int send_message(const void* bytes, long count, int to, int tag, void** request) {
  BEGIN(count) MPI_Isend(bytes, (int)count, MPI_BYTE, to, tag, messages, made) END
}

static int probe(int* from, int* tag, long* bytes) {
  int found = 0, count = 0;
  MPI_Status status;
  if (MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, messages, &found, &status) != MPI_SUCCESS || !found) return 0;
  MPI_Get_count(&status, MPI_BYTE, &count);
  *from = status.MPI_SOURCE;
  *tag = status.MPI_TAG;
  *bytes = count;
  return 1;
}

static int receive(void* bytes, long count, int from, int tag) {
  return fits(count) ? MPI_Recv(bytes, (int)count, MPI_BYTE, from, tag, messages, MPI_STATUS_IGNORE) : MPI_ERR_COUNT;
}

static int test(void* request, int* done) {
  const int code = MPI_Test(request, done, MPI_STATUS_IGNORE);
  if (code != MPI_SUCCESS || *done) free(request);
  return code;
}

const struct sepconv_mpi* sepconv_mpi_table(void) {
  static const struct sepconv_mpi table = {
      SEPCONV_MPI_ABI, COMPILED,   init,         finalize, abort_all, library,    rank,    size,
      local_rank,      local_size, error_text,   share,    fence,     all_reduce, barrier, all_gather,
      gather,          broadcast,  send_message, probe,    receive,   test,
  };
  return &table;
}
