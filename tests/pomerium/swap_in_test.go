//go:build embed_pomerium

package pomerium

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"databroker-host/tests/pomerium/stock"
	"databroker-host/tests/pomerium/target"

	pomeriumgrpc "github.com/pomerium/pomerium/pkg/grpc"
	databrokerpb "github.com/pomerium/pomerium/pkg/grpc/databroker"
	"github.com/pomerium/pomerium/pkg/grpc/session"
)

// The guide's own words for what a test has to put in their place.
const (
	guideSecretFile = "/etc/pomerium/shared-secret"
	guideHost       = "databroker-host.internal:5443"
	guideFollower   = "pomerium-databroker.internal:5444"
)

// guide is the swap-in guide, which the test follows to the letter but for addresses and the secret's file.
type guide struct {
	t    *testing.T
	text string
	// folder is where its files are put.
	folder string
}

// block finds the fenced block in the guide that begins with these words.
func (g guide) block(language, beginning string) string {
	g.t.Helper()
	for _, fenced := range strings.Split(g.text, "```"+language+"\n")[1:] {
		content, _, _ := strings.Cut(fenced, "```")
		if strings.HasPrefix(content, beginning) {
			return content
		}
	}
	g.t.Fatalf("the guide has no block of %s that begins with %q", language, beginning)
	return ""
}

// file writes one of the guide's files with replacements, each of which must be there to replace.
func (g guide) file(name string, replacements ...string) string {
	g.t.Helper()
	content := g.block("yaml", "# "+name)
	for i := 0; i < len(replacements); i += 2 {
		if !strings.Contains(content, replacements[i]) {
			g.t.Fatalf("%s in the guide has no %q:\n%s", name, replacements[i], content)
		}
		content = strings.ReplaceAll(content, replacements[i], replacements[i+1])
	}
	path := filepath.Join(g.folder, name)
	must(g.t, os.WriteFile(path, []byte(content), 0o600))
	return path
}

// run makes one of the guide's calls of the host's program.
func (g guide) run(environment []string, line string, replacements ...string) (string, error) {
	g.t.Helper()
	for i := 0; i < len(replacements); i += 2 {
		line = strings.ReplaceAll(line, replacements[i], replacements[i+1])
	}
	words := strings.Fields(line)
	ctx, cancel := context.WithTimeout(g.t.Context(), patience)
	defer cancel()
	command := exec.CommandContext(ctx, target.Binary(g.t), words[1:]...)
	command.Dir = g.folder
	command.Env = append(os.Environ(), environment...)
	output, err := command.CombinedOutput()
	return string(output), err
}

// TestSwapInGuide follows docs/swap-in.md: it starts what the guide starts, with the files that the guide shows, and does
// what the guide does to see that it works and to go back.
func TestSwapInGuide(t *testing.T) {
	target.SkipOnStock(t, "the guide is about the host")
	text, err := os.ReadFile("../../docs/swap-in.md")
	must(t, err)
	g := guide{t: t, text: string(text), folder: t.TempDir()}
	secret := make([]byte, 32)
	_, err = rand.Read(secret)
	must(t, err)
	secretFile := filepath.Join(g.folder, "shared-secret")
	must(t, os.WriteFile(secretFile, []byte(base64.StdEncoding.EncodeToString(secret)), 0o600))

	// 1. Start databroker-host.
	anyPort := []string{
		guideSecretFile, secretFile, `":5443"`, `"127.0.0.1:0"`, `":28080"`, `"127.0.0.1:0"`, `":9090"`, `"127.0.0.1:0"`,
	}
	file := g.file("databroker-host.yaml", anyPort...)
	check, _, _ := strings.Cut(g.block("sh", "databroker-host config check"), "\n")
	if output, err := g.run(nil, check); err != nil {
		t.Fatalf("%s: %v\n%s", check, err, output)
	}
	host := target.Start(t, target.Options{File: file, Secret: secret})

	// 2. Let Pomerium's databroker follow it.
	start := func(file string) databrokerpb.DataBrokerServiceClient {
		t.Helper()
		ready, failed := make(chan string, 1), make(chan error, 1)
		inBackground(t, func(ctx context.Context) error {
			err := stock.Serve(ctx, stock.Config{
				Address: "127.0.0.1:0", File: file, IdentityManager: true, GracePeriod: time.Second,
			}, func(address string) { ready <- address })
			failed <- err
			return err
		})
		select {
		case address := <-ready:
			connection, err := pomeriumgrpc.NewGRPCClientConn(t.Context(), &pomeriumgrpc.Options{
				Address: address, SignedJWTKey: secret,
			})
			must(t, err)
			t.Cleanup(func() { _ = connection.Close() })
			return databrokerpb.NewDataBrokerServiceClient(connection)
		case err := <-failed:
			t.Fatalf("Pomerium's databroker did not start with %s: %v", file, err)
		case <-time.After(patience):
			t.Fatalf("Pomerium's databroker did not start within %v", patience)
		}
		return nil
	}
	follower := start(g.file("pomerium-databroker.yaml", guideSecretFile, secretFile, guideHost, host.Address(),
		"http://"+guideFollower, "http://127.0.0.1:1", `":5444"`, `"127.0.0.1:0"`))

	// 3. Send the other processes to databroker-host; those that are not changed yet reach it through the follower.
	if services := g.block("yaml", "# pomerium-services.yaml"); !strings.Contains(services, "http://"+guideHost) {
		t.Errorf("the guide sends the other processes elsewhere:\n%s", services)
	}
	direct := host.Client()
	putSession(t, direct, "signed in", "token")
	putSession(t, follower, "signed in at the old address", "token")
	if known := live(t, direct, sessionType); len(known) != 2 {
		t.Errorf("databroker-host knows %v", known)
	}

	// 4. See that it works.
	var environment []string
	watched := false
	for _, line := range strings.Split(strings.TrimSpace(g.block("sh", "export SHARED_SECRET_FILE")), "\n") {
		switch {
		case strings.HasPrefix(line, "export "):
			environment = append(environment, strings.ReplaceAll(strings.TrimPrefix(line, "export "), guideSecretFile, secretFile))
		case strings.HasPrefix(line, "databroker-host record watch"):
			watched = true
			g.watch(environment, line, host)
		case strings.HasPrefix(line, "databroker-host "):
			output, err := g.run(environment, line, guideHost, host.Address())
			if err != nil {
				t.Errorf("%s: %v\n%s", line, err, output)
			}
			if strings.HasPrefix(line, "databroker-host types") && !strings.Contains(output, "session.Session") {
				t.Errorf("%s prints\n%s", line, output)
			}
		}
	}
	if !watched || len(environment) != 1 {
		t.Errorf("the guide watches: %v, and sets %v", watched, environment)
	}
	eventually(t, func() string {
		_, err := direct.AcquireLease(deadline(t), &databrokerpb.AcquireLeaseRequest{
			Name: "identity_manager", Duration: durationpb.New(time.Millisecond),
		})
		if status.Code(err) != codes.AlreadyExists {
			return fmt.Sprintf("the identity manager holds no lease on databroker-host: %v", err)
		}
		return ""
	})

	// Go back: without the three keys Pomerium's databroker is one of its own.
	content, err := os.ReadFile(filepath.Join(g.folder, "pomerium-databroker.yaml"))
	must(t, err)
	before, _, found := strings.Cut(string(content), "databroker_cluster_node_id")
	if !found {
		t.Fatalf("the follower's file has no cluster keys:\n%s", content)
	}
	alone := filepath.Join(g.folder, "alone.yaml")
	must(t, os.WriteFile(alone, []byte(before), 0o600))
	putSession(t, start(alone), "after going back", "token")
	if _, err := session.Get(deadline(t), direct, "after going back"); status.Code(err) != codes.NotFound {
		t.Errorf("after going back databroker-host still gets the writes: %v", err)
	}
}

// watch runs the guide's watch until it has shown a session that is written meanwhile.
func (g guide) watch(environment []string, line string, host *target.Server) {
	g.t.Helper()
	words := strings.Fields(strings.ReplaceAll(line, guideHost, host.Address()))
	ctx, cancel := context.WithTimeout(g.t.Context(), patience)
	defer cancel()
	output, err := os.Create(filepath.Join(g.folder, "watched"))
	must(g.t, err)
	defer output.Close()
	command := exec.CommandContext(ctx, target.Binary(g.t), words[1:]...)
	command.Env = append(os.Environ(), environment...)
	command.Stdout, command.Stderr = output, output
	must(g.t, command.Start())
	client, number := host.Client(), 0
	eventually(g.t, func() string {
		number++
		putSession(g.t, client, fmt.Sprint("watched ", number), "token")
		shown, err := os.ReadFile(output.Name())
		must(g.t, err)
		if !strings.Contains(string(shown), "watched ") {
			return fmt.Sprintf("%s has shown:\n%s", line, shown)
		}
		return ""
	})
	cancel()
	var ended *exec.ExitError
	if err := command.Wait(); err != nil && !errors.As(err, &ended) {
		g.t.Error(err)
	}
}
