/* pause: the first process of every pod, which holds the pod's namespaces.
 *
 * As process 1 it has to do two things: adopt and reap orphans when the pod's containers share one
 * process namespace, and end at once when asked to. All signals of interest are blocked and fetched,
 * so there is no handler and nothing that could be interrupted. */
#include <signal.h>
#include <stddef.h>
#include <sys/wait.h>

int main(void) {
  sigset_t signals;
  int signal;

  sigemptyset(&signals);
  sigaddset(&signals, SIGCHLD);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  if (sigprocmask(SIG_BLOCK, &signals, NULL) != 0)
    return 1;
  for (;;) {
    if (sigwait(&signals, &signal) != 0)
      return 2;
    if (signal != SIGCHLD)
      return 0;
    while (waitpid(-1, NULL, WNOHANG) > 0) {
    }
  }
}
