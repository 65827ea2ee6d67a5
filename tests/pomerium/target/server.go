// Package target starts, restarts and stops the databroker under test, a process of its own, and connects to it the
// way Pomerium does.
//
// Every test gets a fresh server on a free loopback port. A server that is restarted takes another port: clients find
// it because the connection asks the [Server] for its address whenever it dials, so no test depends on getting a port
// back.
package target

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/pomerium/pomerium/config"
	pomeriumgrpc "github.com/pomerium/pomerium/pkg/grpc"
	databrokerpb "github.com/pomerium/pomerium/pkg/grpc/databroker"
)

// The environment that chooses what is tested.
const (
	// binaryVariable holds the path of the host's binary.
	binaryVariable = "DATABROKER_HOST_BINARY"
	// addressVariable holds the `host:port` of a server that already runs and whose records may be cleared.
	addressVariable = "DATABROKER_ADDRESS"
	// secretVariable holds the shared secret of that server.
	secretVariable = "SHARED_SECRET"
	// kindVariable is `stock` to test Pomerium's own server, which shows that the tests themselves are right.
	kindVariable = "TARGET"
)

// RunStockVariable makes a test binary behave as the stock server: it is how tests start one without a build of their
// own. The binary's TestMain looks at it.
const RunStockVariable = "DATABROKER_TEST_RUN_STOCK"

const (
	// startDeadline bounds start-up until the first answered call, on a machine that is busy with other things.
	startDeadline = 60 * time.Second
	// stopDeadline bounds an orderly shutdown.
	stopDeadline = 20 * time.Second
)

// Stock tells whether Pomerium's own server is tested.
func Stock() bool { return os.Getenv(kindVariable) == "stock" }

// SkipOnStock skips a test that Pomerium's own server is known to fail, with the reason.
func SkipOnStock(t testing.TB, reason string) {
	t.Helper()
	if Stock() {
		t.Skip("the stock server cannot pass this: " + reason)
	}
}

// Options vary how a server runs.
type Options struct {
	// History is how long changes are kept; zero leaves the default of an hour. The stock server cannot vary it.
	History time.Duration
	// CleanInterval is the time between two clean passes; zero leaves the default.
	CleanInterval time.Duration
	// File is a configuration file for the host, which then gets no settings from the environment. It listens on
	// loopback and any port, and its secret is Secret. The stock server cannot be started so.
	File   string
	Secret []byte
	// TLSDerive makes the server speak TLS with a certificate for this domain that is derived from the shared secret;
	// with `*` it is the one that a server without any certificate has.
	TLSDerive string
}

func (o Options) varied() bool {
	return o.History != 0 || o.CleanInterval != 0 || o.File != "" || o.TLSDerive != ""
}

// Server is one databroker that can be stopped and started again. Its methods are for one goroutine, except Address
// and Dial's connections.
type Server struct {
	t       testing.TB
	options Options
	secret  []byte

	// mu guards addresses, which connections read while a restart writes them: one of each process.
	mu        sync.Mutex
	addresses []string

	// database is the connection string of the Postgres database that all processes share, if any.
	database string
	// processes are none while the server is stopped, and always for one that was given by address.
	processes []*process
	// given is set for a server that runs already and that is not ours to stop.
	given bool
}

// Start starts a fresh server and stops it when the test ends.
func Start(t testing.TB, options Options) *Server {
	t.Helper()
	server := &Server{t: t, options: options}
	if address := os.Getenv(addressVariable); address != "" {
		server.useGiven(address)
		return server
	}
	if server.secret = options.Secret; server.secret == nil {
		server.secret = make([]byte, 32)
		if _, err := rand.Read(server.secret); err != nil {
			t.Fatalf("making a shared secret: %v", err)
		}
	}
	server.database = NewDatabase(t)
	t.Cleanup(server.end)
	server.start()
	return server
}

func (s *Server) useGiven(address string) {
	s.t.Helper()
	if s.options.varied() {
		s.t.Skipf("this test sets up its server, so it cannot use the one at %s=%s", addressVariable, address)
	}
	secret, err := base64.StdEncoding.DecodeString(os.Getenv(secretVariable))
	if err != nil || len(secret) != 32 {
		s.t.Fatalf("set %s to the secret of the server at %s: base64 of 32 bytes", secretVariable, address)
	}
	s.given, s.secret, s.addresses = true, secret, []string{address}
	ctx, cancel := context.WithTimeout(context.Background(), startDeadline)
	defer cancel()
	if _, err := s.Client().Clear(ctx, new(emptypb.Empty)); err != nil {
		s.t.Fatalf("clearing the server at %s: %v", address, err)
	}
}

// Address is where the server listens now, `host:port`; it changes at a restart. Of several processes it is the first.
func (s *Server) Address() string { return s.addressOf(0) }

func (s *Server) addressOf(number int) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if number >= len(s.addresses) {
		return ""
	}
	return s.addresses[number]
}

// Secret is the shared secret, 32 bytes.
func (s *Server) Secret() []byte { return s.secret }

// Stop ends the server in an orderly way, as a service manager would. Open streams are told.
func (s *Server) Stop() { s.endProcess(syscall.SIGTERM) }

// Kill ends the server at once, as a crash would.
func (s *Server) Kill() { s.endProcess(syscall.SIGKILL) }

// StartAgain starts a server that was stopped or killed.
func (s *Server) StartAgain() {
	s.t.Helper()
	s.start()
}

// Dial connects as Pomerium's services do, with a signed token in every call. The connection follows restarts and is
// closed when the test ends.
func (s *Server) Dial(options ...grpc.DialOption) *grpc.ClientConn {
	s.t.Helper()
	if s.options.TLSDerive != "" {
		// Before those of a test, which go before these.
		options = append([]grpc.DialOption{s.derivedTLS()}, options...)
	}
	// What is resolved and dialled are the numbers of the processes, so that each is found again after a restart.
	options = append(options, grpc.WithContextDialer(func(ctx context.Context, number string) (net.Conn, error) {
		which, err := strconv.Atoi(number)
		if err != nil {
			return nil, err
		}
		return new(net.Dialer).DialContext(ctx, "tcp", s.addressOf(which))
	}))
	numbers := manual.NewBuilderWithScheme("databrokers")
	var state resolver.State
	for number := range max(1, hosts(s.t)) {
		state.Addresses = append(state.Addresses, resolver.Address{Addr: strconv.Itoa(number)})
	}
	numbers.InitialState(state)
	// One call goes to one process, the next to the next, where there are several.
	options = append(options, grpc.WithResolvers(numbers),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"round_robin":{}}]}`))
	connection, err := pomeriumgrpc.NewGRPCClientConn(s.t.Context(), &pomeriumgrpc.Options{
		Address:      "databrokers:///databroker",
		SignedJWTKey: s.secret,
	}, options...)
	if err != nil {
		s.t.Fatalf("connecting to the server: %v", err)
	}
	s.t.Cleanup(func() { _ = connection.Close() })
	return connection
}

// derivedTLS trusts what Pomerium's services trust that have tls_derive and this server's secret.
func (s *Server) derivedTLS() grpc.DialOption {
	s.t.Helper()
	config, err := DerivedTLS(s.options.TLSDerive, s.secret)
	if err != nil {
		s.t.Fatalf("deriving what to trust: %v", err)
	}
	return grpc.WithTransportCredentials(credentials.NewTLS(config))
}

// DerivedTLS is the configuration of a client that has tls_derive set to the domain, made by Pomerium.
func DerivedTLS(domain string, secret []byte) (*tls.Config, error) {
	service := config.Config{Options: &config.Options{
		SharedKey:                base64.StdEncoding.EncodeToString(secret),
		DeriveInternalDomainCert: &domain,
	}}
	client, err := service.GetTLSClientConfig()
	if err != nil {
		return nil, err
	}
	client.ServerName = domain
	if domain == "*" {
		// Go takes no name for a bare `*`. Envoy, which does TLS for Pomerium, asks for the chain and for this very name.
		client.ServerName = "databroker"
		client.InsecureSkipVerify = true
		client.VerifyConnection = func(state tls.ConnectionState) error {
			certificate := state.PeerCertificates[0]
			if len(certificate.DNSNames) != 1 || certificate.DNSNames[0] != "*" {
				return fmt.Errorf("the certificate is for %q", certificate.DNSNames)
			}
			_, err := certificate.Verify(x509.VerifyOptions{Roots: client.RootCAs})
			return err
		}
	}
	return client, nil
}

// Client is a databroker client on a connection of its own.
func (s *Server) Client(options ...grpc.DialOption) databrokerpb.DataBrokerServiceClient {
	s.t.Helper()
	return databrokerpb.NewDataBrokerServiceClient(s.Dial(options...))
}

// Binary is the path of the host's program.
func Binary(t testing.TB) string {
	t.Helper()
	binary := os.Getenv(binaryVariable)
	if binary == "" {
		t.Fatalf("set %s to the path of a built databroker-host, %s and %s to test a server that runs already, "+
			"or %s=stock to test Pomerium's own server", binaryVariable, addressVariable, secretVariable, kindVariable)
	}
	return binary
}

// command says how the server is started.
func (s *Server) command() *exec.Cmd {
	s.t.Helper()
	secret := base64.StdEncoding.EncodeToString(s.secret)
	if Stock() {
		if s.options.varied() {
			s.t.Fatal("the stock server here keeps an hour of changes, has no TLS and cannot vary it: call SkipOnStock first")
		}
		self, err := os.Executable()
		if err != nil {
			s.t.Fatalf("finding the test binary, which is also the stock server: %v", err)
		}
		command := exec.Command(self, "--address", "127.0.0.1:0", "--no-tracer", "--grace-period", "1s")
		command.Env = append(os.Environ(), RunStockVariable+"=1", "SHARED_SECRET="+secret)
		return command
	}
	if s.options.File != "" {
		return exec.Command(Binary(s.t), "serve", "--config", s.options.File)
	}
	command := exec.Command(Binary(s.t), "serve")
	command.Env = append(os.Environ(), "NO_COLOR=1", "GRPC_ADDRESS=127.0.0.1:0", "SHARED_SECRET="+secret)
	if s.database != "" {
		command.Env = append(command.Env, "HEALTH_CHECK_ADDR=off",
			"DATABROKER_STORAGE_TYPE="+plugin(), "DATABROKER_STORAGE_CONNECTION_STRING="+s.database)
	}
	switch s.options.TLSDerive {
	case "":
		command.Env = append(command.Env, "GRPC_INSECURE=true")
	case "*":
		command.Env = append(command.Env, "GRPC_INSECURE=false")
	default:
		command.Env = append(command.Env, "TLS_DERIVE="+s.options.TLSDerive)
	}
	if s.options.History > 0 {
		command.Env = append(command.Env, "DATABROKER_HISTORY="+s.options.History.String())
	}
	if s.options.CleanInterval > 0 {
		command.Env = append(command.Env, "DATABROKER_CLEAN_INTERVAL="+s.options.CleanInterval.String())
	}
	return command
}

func (s *Server) start() {
	s.t.Helper()
	var addresses []string
	for range max(1, hosts(s.t)) {
		process, address := s.startOne()
		s.processes = append(s.processes, process)
		addresses = append(addresses, address)
	}
	s.mu.Lock()
	s.addresses = addresses
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), startDeadline)
	defer cancel()
	client := s.Client()
	for range addresses {
		if _, err := client.ServerInfo(ctx, new(emptypb.Empty)); err != nil {
			s.t.Fatalf("the server at %v does not answer: %v\n%s", addresses, err, s.output())
		}
	}
}

func (s *Server) startOne() (*process, string) {
	s.t.Helper()
	process, err := startProcess(s.command())
	if err != nil {
		s.t.Fatal(err)
	}
	deadline := time.NewTimer(startDeadline)
	defer deadline.Stop()
	select {
	case address := <-process.address:
		return process, address
	case <-process.ended:
		s.t.Fatalf("the server ended before it listened: %v\n%s", process.err, process.output())
	case <-deadline.C:
		s.t.Fatalf("the server printed no line with `serving` and its address within %v:\n%s", startDeadline,
			process.output())
	}
	return nil, ""
}

func (s *Server) output() string {
	var all strings.Builder
	for _, process := range s.processes {
		all.WriteString(process.output())
	}
	return all.String()
}

func (s *Server) endProcess(signal syscall.Signal) {
	s.t.Helper()
	if s.given {
		s.t.Skipf("this test stops its server, so it cannot use the one at %s=%s", addressVariable, s.Address())
	}
	if len(s.processes) == 0 {
		s.t.Fatal("the server is stopped already")
	}
	s.endAll(signal)
}

func (s *Server) endAll(signal syscall.Signal) {
	processes := s.processes
	s.processes = nil
	for _, process := range processes {
		if err := process.end(signal); err != nil {
			s.t.Errorf("%v\n%s", err, process.output())
		}
	}
}

// end runs after the test and leaves no process behind.
func (s *Server) end() {
	output := s.output()
	s.endAll(syscall.SIGTERM)
	if s.t.Failed() {
		s.t.Logf("what the server printed:\n%s", output)
	}
}

// process is a running command whose output is read for the address it listens on.
type process struct {
	command *exec.Cmd
	// address gets the first address that is printed; room for one, so the reader never blocks.
	address chan string
	// ended closes when the command is gone; err says why and may be read from then on.
	ended chan struct{}
	err   error

	// mu guards lines, the output so far.
	mu    sync.Mutex
	lines strings.Builder
}

// serving finds the line by which a server says that it answers, and the address in it. Colours that a logger may add are
// removed first.
var (
	serving = regexp.MustCompile(`(?i)(?:serving.*?address\W+|listening on )(127\.0\.0\.1:[1-9][0-9]*)`)
	colours = regexp.MustCompile("\x1b\\[[0-9;]*m")
)

func startProcess(command *exec.Cmd) (*process, error) {
	reader, writer, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("making a pipe for the server's output: %w", err)
	}
	command.Stdout, command.Stderr = writer, writer
	err = command.Start()
	_ = writer.Close()
	if err != nil {
		_ = reader.Close()
		return nil, fmt.Errorf("starting %s: %w", command.Path, err)
	}
	p := &process{command: command, address: make(chan string, 1), ended: make(chan struct{})}
	go p.read(reader)
	return p, nil
}

// read collects output until the process is gone.
func (p *process) read(reader io.ReadCloser) {
	found := false
	scanner := bufio.NewScanner(reader)
	for scanner.Scan() {
		line := colours.ReplaceAllString(scanner.Text(), "")
		p.mu.Lock()
		p.lines.WriteString(line + "\n")
		p.mu.Unlock()
		if match := serving.FindStringSubmatch(line); match != nil && !found {
			found = true
			p.address <- match[1]
		}
	}
	_, _ = io.Copy(io.Discard, reader)
	_ = reader.Close()
	p.err = p.command.Wait()
	close(p.ended)
}

func (p *process) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lines.String()
}

// end sends the signal and waits until the process is gone. Only an orderly end can fail.
func (p *process) end(signal syscall.Signal) error {
	select {
	case <-p.ended:
		return fmt.Errorf("the server ended by itself: %w", p.err)
	default:
	}
	if err := p.command.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("sending %v to the server: %w", signal, err)
	}
	deadline := time.NewTimer(stopDeadline)
	defer deadline.Stop()
	select {
	case <-p.ended:
	case <-deadline.C:
		_ = p.command.Process.Kill()
		<-p.ended
		return fmt.Errorf("the server did not stop within %v after %v", stopDeadline, signal)
	}
	if signal == syscall.SIGTERM && p.err != nil {
		return fmt.Errorf("the server should exit with 0 after %v: %w", signal, p.err)
	}
	return nil
}
