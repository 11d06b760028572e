// Capture files: read in every form, recorded, and put into time.
#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <thread>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <pcap/pcap.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include "net/bytes.h"
#include "program/start_error.h"
#include "sidecar/capture/link_layer.h"
#include "sidecar/capture/recorder.h"
#include "sidecar/replay/packet_file.h"
#include "sidecar/replay/reader.h"
#include "sidecar/replay/schedule.h"
#include "tests/unit/tcp_packets.h"

namespace trafficmirror::replay {
namespace {

using namespace std::chrono_literals;
using capture::CapturedPacket;
using capture::Recorder;

class Directory {
 public:
  Directory() {
    std::string name = testing::TempDir() + "replay_test_XXXXXX";
    path_ = ::mkdtemp(name.data());
  }
  ~Directory() { std::filesystem::remove_all(path_); }
  Directory(const Directory&) = delete;
  Directory& operator=(const Directory&) = delete;
  std::string operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

void write_file(const std::string& path, const std::string& content) {
  std::ofstream(path, std::ios::binary) << content;
}
std::string content_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string request(size_t number) {
  return tests::packet("192.0.2.1:4000", "10.1.0.1:80",
                       {.sequence = static_cast<uint32_t>(number),
                        .flags = {.ack = true},
                        .payload = "request " + std::to_string(number)});
}

// Written by libpcap itself.
void write_pcap(const std::string& path, int link_type, const std::vector<std::string>& frames,
                uint32_t snap_length = 65535) {
  pcap_t* const dead = pcap_open_dead_with_tstamp_precision(
      link_type, static_cast<int>(snap_length), PCAP_TSTAMP_PRECISION_MICRO);
  pcap_dumper_t* const dumper = pcap_dump_open(dead, path.c_str());
  pcap_pkthdr header{};
  for (const std::string& frame : frames) {
    header.ts.tv_sec += 1;
    header.ts.tv_usec = 5;
    header.len = static_cast<uint32_t>(frame.size());
    header.caplen = std::min(header.len, snap_length);
    pcap_dump(reinterpret_cast<u_char*>(dumper), &header,
              reinterpret_cast<const u_char*>(frame.data()));
  }
  pcap_dump_close(dumper);
  pcap_close(dead);
}

struct ReadFile {
  std::vector<std::string> packets;
  std::vector<size_t> wire_lengths;
  std::vector<std::chrono::nanoseconds> times;
  std::string problem;
};
ReadFile read_file(const std::string& path) {
  ReadFile read;
  PacketFile file(path, -1);
  while (const auto packet = file.next()) {
    read.packets.emplace_back(packet->bytes.begin(), packet->bytes.end());
    read.wire_lengths.push_back(packet->wire_length);
    read.times.push_back(packet->time);
  }
  read.problem = file.problem();
  return read;
}

std::string refusal(const std::function<void()>& action) {
  try {
    action();
  } catch (const program::StartError& error) {
    return error.what();
  }
  return "";
}

std::string link_header(std::initializer_list<int> bytes) {
  return {bytes.begin(), bytes.end()};
}
std::string zeros(size_t count) {
  return std::string(count, '\0');
}
const std::string ipv4_type = link_header({0x08, 0x00});

struct LinkCase {
  const char* name;
  int link_type;
  std::string header;
};
void PrintTo(const LinkCase& link, std::ostream* out) {
  *out << link.name;
}

class LinkTypes : public testing::TestWithParam<LinkCase> {};

TEST_P(LinkTypes, AreRead) {
  const Directory directory;
  const std::string path = directory / "x.pcap";
  const LinkCase& link = GetParam();
  write_pcap(path, link.link_type, {link.header + request(1), link.header + request(2)});
  const ReadFile read = read_file(path);
  EXPECT_EQ(read.packets, (std::vector{request(1), request(2)}));
  EXPECT_EQ(read.wire_lengths[0], request(1).size());
  EXPECT_EQ(read.times, (std::vector<std::chrono::nanoseconds>{1s + 5us, 2s + 5us}));
  EXPECT_EQ(read.problem, "");
}

INSTANTIATE_TEST_SUITE_P(
    Replay, LinkTypes,
    testing::Values(
        LinkCase{"ethernet", DLT_EN10MB, zeros(12) + ipv4_type},
        LinkCase{"vlan", DLT_EN10MB, zeros(12) + link_header({0x81, 0, 0, 7}) + ipv4_type},
        LinkCase{"vlans", DLT_EN10MB,
                 zeros(12) + link_header({0x88, 0xa8, 0, 7, 0x81, 0, 0, 8}) + ipv4_type},
        LinkCase{"sll", DLT_LINUX_SLL, zeros(14) + ipv4_type},
        LinkCase{"sll_vlan", DLT_LINUX_SLL, zeros(14) + link_header({0x81, 0, 0, 7}) + ipv4_type},
        LinkCase{"sll2", DLT_LINUX_SLL2, ipv4_type + zeros(18)},
        LinkCase{"null", DLT_NULL, link_header({2, 0, 0, 0})},
        LinkCase{"loop", DLT_LOOP, link_header({0, 0, 0, 2})}, LinkCase{"raw", DLT_RAW, ""},
        LinkCase{"ipv4", DLT_IPV4, ""}),
    testing::PrintToStringParamName());

TEST(PacketFileTest, ShowsFramesThatAreNoIpAsEmpty) {
  const Directory directory;
  const std::string path = directory / "x.pcap";
  const std::string arp = zeros(12) + link_header({0x08, 0x06}) + zeros(28);
  const std::string cut_tag = zeros(12) + link_header({0x81, 0});
  write_pcap(path, DLT_EN10MB, {arp, zeros(12) + ipv4_type + request(1), zeros(3), cut_tag});
  EXPECT_EQ(read_file(path).packets, (std::vector<std::string>{"", request(1), "", ""}));
}

TEST(PacketFileTest, KeepsTheLengthOfWhatWasCut) {
  const Directory directory;
  const std::string path = directory / "x.pcap";
  write_pcap(path, DLT_EN10MB, {zeros(12) + ipv4_type + request(1)}, 60);
  const ReadFile read = read_file(path);
  EXPECT_EQ(read.packets[0], request(1).substr(0, 60 - 14));
  EXPECT_EQ(read.wire_lengths[0], request(1).size());
}

// A block of pcapng, in this machine's byte order.
std::string block(uint32_t type, std::string body) {
  body.resize((body.size() + 3) / 4 * 4);
  const auto length = static_cast<uint32_t>(body.size() + 12);
  std::string text(reinterpret_cast<const char*>(&type), 4);
  text.append(reinterpret_cast<const char*>(&length), 4);
  return text + body + std::string(reinterpret_cast<const char*>(&length), 4);
}
template <typename... Numbers>
std::string numbers(Numbers... values) {
  std::string text;
  (text.append(reinterpret_cast<const char*>(&values), sizeof values), ...);
  return text;
}
const std::string section =
    block(0x0a0d0d0a, numbers(0x1a2b3c4dU, uint16_t{1}, uint16_t{0}, ~0ULL));
std::string interface_block(uint16_t link_type) {
  // With nanoseconds (if_tsresol 9).
  return block(1, numbers(link_type, uint16_t{0}, 262144U, uint16_t{9}, uint16_t{1}, 9U, 0U));
}
std::string packet_block(uint32_t interface, uint64_t time, const std::string& frame) {
  const auto length = static_cast<uint32_t>(frame.size());
  return block(6, numbers(interface, static_cast<uint32_t>(time >> 32), static_cast<uint32_t>(time),
                          length, length) +
                      frame);
}

TEST(PacketFileTest, ReadsPcapng) {
  const Directory directory;
  const std::string path = directory / "x.pcapng";
  write_file(path, section + interface_block(101) + packet_block(0, 1'000'000'007, request(1)) +
                       packet_block(0, 3'000'000'000, request(2)));
  const ReadFile read = read_file(path);
  EXPECT_EQ(read.problem, "");
  EXPECT_EQ(read.packets, (std::vector{request(1), request(2)}));
  EXPECT_EQ(read.times, (std::vector<std::chrono::nanoseconds>{1s + 7ns, 3s}));
}

TEST(PacketFileTest, SaysThatInterfacesDiffer) {
  const Directory directory;
  const std::string path = directory / "x.pcapng";
  write_file(path, section + interface_block(101) + packet_block(0, 1, request(1)) +
                       interface_block(1) + packet_block(1, 1, zeros(12) + ipv4_type + request(2)));
  const ReadFile read = read_file(path);
  EXPECT_EQ(read.packets.size(), 1U);
  EXPECT_NE(read.problem.find("behind packet 1: an interface has a type"), std::string::npos)
      << read.problem;
}

TEST(PacketFileTest, RefusesOtherLinkTypes) {
  const Directory directory;
  const std::string path = directory / "x.pcap";
  write_pcap(path, DLT_IEEE802_11, {zeros(30)});
  EXPECT_EQ(refusal([&] { read_file(path); }),
            "--pcap " + path +
                " can't be replayed: its link type is IEEE802_11; it takes Ethernet, Linux "
                "cooked, loopback and raw IP");
}

void pack_with_gzip(const std::string& from, const std::string& to, const char* mode = "wb") {
  const std::string content = content_of(from);
  const gzFile file = gzopen(to.c_str(), mode);
  gzwrite(file, content.data(), static_cast<unsigned>(content.size()));
  gzclose(file);
}
std::string packed_with_zstd(const std::string& content) {
  std::string packed(ZSTD_compressBound(content.size()), '\0');
  ZSTD_CCtx* const context = ZSTD_createCCtx();
  ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 1);  // as the program zstd does
  packed.resize(
      ZSTD_compress2(context, packed.data(), packed.size(), content.data(), content.size()));
  ZSTD_freeCCtx(context);
  return packed;
}
// So long that it is not read at once, and does not shrink to nothing.
std::vector<std::string> many_requests() {
  std::vector<std::string> requests;
  uint32_t state = 1;
  for (size_t i = 0; i < 5000; ++i) {
    std::string noise(200, '\0');
    for (char& byte : noise) byte = static_cast<char>((state = state * 1664525 + 1013904223) >> 24);
    requests.push_back(
        tests::packet("192.0.2.1:4000", "10.1.0.1:80", {.flags = {.ack = true}, .payload = noise}));
  }
  return requests;
}

TEST(PacketFileTest, UnpacksGzipAndZstd) {
  const Directory directory;
  const std::string plain = directory / "x.pcap", gzip = directory / "g", zstd = directory / "z";
  const auto requests = many_requests();
  write_pcap(plain, DLT_RAW, requests);
  pack_with_gzip(plain, gzip);
  const std::string content = content_of(plain);
  // Of two members each, which meet in the middle of a packet.
  const size_t half = content.size() / 2;
  write_file(zstd,
             packed_with_zstd(content.substr(0, half)) + packed_with_zstd(content.substr(half)));
  const std::string first = directory / "1", second = directory / "2", both = directory / "both";
  write_file(first, content.substr(0, half));
  write_file(second, content.substr(half));
  pack_with_gzip(first, both);
  pack_with_gzip(second, both, "ab");
  for (const std::string& path : {gzip, zstd, both}) {
    const ReadFile read = read_file(path);
    EXPECT_EQ(read.problem, "") << path;
    EXPECT_TRUE(read.packets == requests) << path << " " << read.packets.size();
  }
}

TEST(PacketFileTest, SaysWherePackedDataEndTooSoonOrAreCorrupt) {
  const Directory directory;
  const std::string plain = directory / "x.pcap", gzip = directory / "g", bad = directory / "bad";
  const auto requests = many_requests();
  write_pcap(plain, DLT_RAW, requests);
  pack_with_gzip(plain, gzip);
  const std::string with_gzip = content_of(gzip);
  const std::string with_zstd = packed_with_zstd(content_of(plain));
  const auto check = [&](const std::string& content, const char* words) {
    write_file(bad, content);
    const ReadFile read = read_file(bad);
    EXPECT_NE(read.problem.find(words), std::string::npos) << read.problem;
    EXPECT_GT(read.packets.size(), 0U);
    EXPECT_LT(read.packets.size(), requests.size());
    EXPECT_TRUE(std::equal(read.packets.begin(), read.packets.end(), requests.begin()));
  };
  check(with_gzip.substr(0, with_gzip.size() / 2), "its gzip data end too soon");
  check(with_zstd.substr(0, with_zstd.size() / 2), "its zstd data end too soon");
  std::string corrupt = with_zstd;
  corrupt.replace(corrupt.size() / 2, 1000, std::string(1000, '\xff'));
  write_file(bad, corrupt);
  EXPECT_NE(read_file(bad).problem.find("its zstd data are corrupt"), std::string::npos);
  // The checksum at the end does not fit what came before; the packets are there.
  corrupt = with_gzip;
  corrupt[corrupt.size() - 6] ^= 1;
  write_file(bad, corrupt);
  EXPECT_NE(read_file(bad).problem.find("its gzip data are corrupt"), std::string::npos);
}

// ---- the recorder

CapturedPacket captured(const std::string& packet, std::chrono::nanoseconds time,
                        size_t wire_length = 0) {
  CapturedPacket captured;
  captured.bytes = tests::bytes_of(packet);
  captured.wire_length = std::max(wire_length, packet.size());
  captured.time = time;
  return captured;
}

TEST(RecorderTest, WritesWhatCanBeReplayed) {
  const Directory directory;
  const std::string path = directory / "x.pcap";
  {
    Recorder recorder({.path = path});
    recorder.add(captured(request(1), 1'700'000'000s + 123'456'789ns));
    recorder.add(captured(request(2).substr(0, 40), 1'700'000'001s, 9999));
  }
  const ReadFile read = read_file(path);
  EXPECT_EQ(read.problem, "");
  EXPECT_EQ(read.packets, (std::vector{request(1), request(2).substr(0, 40)}));
  EXPECT_EQ(read.wire_lengths, (std::vector<size_t>{request(1).size(), 9999}));
  EXPECT_EQ(read.times, (std::vector<std::chrono::nanoseconds>{1'700'000'000s + 123'456'789ns,
                                                               1'700'000'001s}));
  EXPECT_EQ(std::filesystem::status(path).permissions(),
            std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
}

TEST(RecorderTest, KeepsSoManyFilesOfThatSize) {
  const Directory directory;
  const std::string path = directory / "x.pcap";
  const std::string packet = request(1) + std::string(60'000, 'x');
  constexpr size_t packets = 100;
  Recorder::Counters counters;
  {
    Recorder recorder({.path = path, .file_bytes = 1 << 20, .files = 3});
    for (size_t i = 0; i < packets; ++i) {
      recorder.add(captured(packet, std::chrono::seconds(i)));
      // So that it keeps up, and nothing finds no room.
      if (i % 50 == 49)
        while (recorder.counters().packets < i) std::this_thread::sleep_for(1ms);
    }
    while ((counters = recorder.counters()).packets < packets) std::this_thread::sleep_for(1ms);
  }
  EXPECT_EQ(counters.drops, 0U);
  EXPECT_EQ(counters.bytes, packets * (16 + packet.size()));
  const ReadFile newest = read_file(path), older = read_file(path + ".1"),
                 oldest = read_file(path + ".2");
  EXPECT_FALSE(std::filesystem::exists(path + ".3"));
  EXPECT_EQ(newest.times.back(), 99s);
  EXPECT_EQ(newest.times.front(), older.times.back() + 1s);
  EXPECT_EQ(older.times.front(), oldest.times.back() + 1s);
  EXPECT_EQ(older.packets.size(), ((1 << 20) - 24) / (16 + packet.size()));
}

TEST(RecorderTest, EndsWhereItCanNotWrite) {
  const Directory directory;
  std::filesystem::create_directory(directory / "gone");
  Recorder recorder({.path = directory / "gone/x.pcap", .file_bytes = 1 << 20});
  std::filesystem::remove_all(directory / "gone");
  const std::string packet = request(1) + std::string(60'000, 'x');
  for (size_t i = 0; i < 20; ++i) recorder.add(captured(packet, 1s));
  while (recorder.counters().failures == 0) std::this_thread::sleep_for(1ms);
  recorder.add(captured(packet, 1s));
  EXPECT_EQ(recorder.counters().drops, 21U);
  EXPECT_EQ(recorder.counters().packets, 0U);
}

TEST(RecorderTest, DropsWhatFindsNoRoomInMemory) {
  const Directory directory;
  Recorder recorder({.path = directory / "x.pcap"});
  const std::string packet = request(1) + std::string(60'000, 'x');
  constexpr size_t packets = 1000;  // 60 MB, faster than they are written
  for (size_t i = 0; i < packets; ++i) recorder.add(captured(packet, 1s));
  Recorder::Counters counters;
  do {
    std::this_thread::sleep_for(1ms);
    counters = recorder.counters();
  } while (counters.packets + counters.drops < packets);
  EXPECT_EQ(counters.packets + counters.drops, packets);
  EXPECT_GT(counters.packets, Recorder::max_waiting_bytes / 70'000);
}

TEST(RecorderTest, RefusesWhatIsNoFile) {
  EXPECT_EQ(refusal([] { Recorder({.path = "/dev/null"}); }),
            "--record /dev/null is no file that can be replaced");
  EXPECT_NE(refusal([] { Recorder({.path = "/nowhere/x.pcap"}); }).find("No such file"),
            std::string::npos);
}

// ---- the reader

struct Event {
  int descriptor = ::eventfd(0, EFD_CLOEXEC);
  ~Event() { ::close(descriptor); }
  void set() const {
    const uint64_t one = 1;
    EXPECT_EQ(::write(descriptor, &one, sizeof one), 8);
  }
};

// All items, "end" for the end of a round.
std::vector<std::string> read_all(Reader& reader) {
  std::vector<std::string> items;
  while (!reader.finished()) {
    const auto item = reader.next();
    if (!item) {
      pollfd waiting{.fd = reader.descriptor(), .events = POLLIN, .revents = 0};
      EXPECT_EQ(::poll(&waiting, 1, 5000), 1);
      continue;
    }
    items.push_back(item->round_ended
                        ? "end"
                        : std::string(item->packet.bytes.begin(), item->packet.bytes.end()));
    reader.take();
  }
  return items;
}

TEST(ReaderTest, ReadsRoundByRound) {
  const Directory directory;
  const std::string path = directory / "x.pcap";
  write_pcap(path, DLT_RAW, {request(1), request(2)});
  Reader reader(path, 2, -1);
  EXPECT_EQ(read_all(reader), (std::vector<std::string>{request(1), request(2), "end", request(1),
                                                        request(2), "end"}));
}

TEST(ReaderTest, SaysHowMuchOfTheFileWasReadForAPacket) {
  const Directory directory;
  const std::string path = directory / "x.pcap";
  write_pcap(path, DLT_RAW, std::vector<std::string>(10'000, request(1)));
  Reader reader(path, 1, -1);
  ASSERT_TRUE(reader.next());
  int last = *reader.next()->percent;
  EXPECT_LT(last, 30);
  while (!reader.finished()) {
    const auto item = reader.next();
    if (!item) continue;
    EXPECT_GE(*item->percent, last);
    last = *item->percent;
    reader.take();
  }
  EXPECT_EQ(last, 100);
}

TEST(ReaderTest, SkipsTheRestOfARound) {
  const Directory directory;
  const std::string path = directory / "x.pcap";
  const std::vector<std::string> many(100'000, request(1));
  write_pcap(path, DLT_RAW, many);
  Reader reader(path, 2, -1);
  reader.skip_rest_of(0);
  const auto items = read_all(reader);
  EXPECT_LT(items.size(), 2 * many.size())
      << "of the first round there is only what was read ahead";
  EXPECT_GT(items.size(), many.size());
  EXPECT_EQ(std::count(items.begin(), items.end(), "end"), 2);
}

TEST(ReaderTest, ReadsNoFurtherAheadThanItMay) {
  const Directory directory;
  const std::string path = directory / "x.pcap";
  write_pcap(path, DLT_RAW, std::vector<std::string>(100'000, request(1)));
  Reader reader(path, 1, -1);
  ASSERT_TRUE(reader.next());
  std::this_thread::sleep_for(300ms);
  // All of it would be a hundred thousand.
  size_t waiting = 0;
  while (reader.next() && ++waiting < 60'000) reader.take();
  EXPECT_LT(waiting, 60'000U);
}

TEST(ReaderTest, IsNotHeldUpByAPipe) {
  const Directory directory;
  const std::string path = directory / "x.pcap", pipe = directory / "pipe";
  write_pcap(path, DLT_RAW, {request(1), request(2)});
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  const std::string content = content_of(path);
  const size_t most = content.size() - 10;
  std::thread writer([&] {
    const int file = ::open(pipe.c_str(), O_WRONLY);
    EXPECT_EQ(::write(file, content.data(), most), static_cast<ssize_t>(most));
    std::this_thread::sleep_for(200ms);
    EXPECT_EQ(::write(file, content.data() + most, 10), 10);
    ::close(file);
  });
  Reader reader(pipe, 1, -1);
  ASSERT_TRUE(reader.next());
  reader.take();
  EXPECT_FALSE(reader.next());
  EXPECT_FALSE(reader.finished());
  EXPECT_EQ(read_all(reader), (std::vector<std::string>{request(2), "end"}));
  writer.join();
}

TEST(ReaderTest, StopsThoughNothingComes) {
  const Directory directory;
  const std::string pipe = directory / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  const Event stop;
  stop.set();
  {
    Reader reader(pipe, 1, stop.descriptor);  // nobody writes
    EXPECT_FALSE(reader.next());
  }
  const int writer = ::open(pipe.c_str(), O_RDWR);
  {
    Reader reader(pipe, 1, stop.descriptor);  // somebody may
    EXPECT_FALSE(reader.next());
  }
  ::close(writer);
}

TEST(ReaderTest, RefusesWhatHoldsNotOnePacket) {
  const Directory directory;
  const std::string path = directory / "x.pcap";
  write_pcap(path, DLT_RAW, {request(1)});
  write_file(path, content_of(path).substr(0, 30));
  EXPECT_NE(refusal([&] { Reader(path, 1, -1); }).find("behind packet 0: truncated"),
            std::string::npos);
  write_pcap(path, DLT_RAW, {});
  Reader empty(path, 1, -1);  // which is no mistake
  EXPECT_EQ(read_all(empty), std::vector<std::string>{"end"});
}

// ---- the schedule

TEST(ScheduleTest, ReadsSpeeds) {
  EXPECT_EQ(parse_speed("1"), 1);
  EXPECT_EQ(parse_speed("2x"), 2);
  EXPECT_EQ(parse_speed("0.5x"), 0.5);
  EXPECT_EQ(parse_speed("max"), max_speed);
  for (const char* text : {"", "x", "0", "-1", "fast", "2y", "2x ", "nan", "inf", "1e9", "2000"})
    EXPECT_EQ(parse_speed(text), std::nullopt) << text;
}

TEST(ScheduleTest, ReadsMoments) {
  const auto at = [](std::chrono::nanoseconds time) { return std::optional(Moment{false, time}); };
  EXPECT_EQ(parse_moment("90s"), (Moment{true, 90s}));
  EXPECT_EQ(parse_moment("2023-11-14T22:13:20Z"), at(1'700'000'000s));
  EXPECT_EQ(parse_moment("2023-11-14t22:13:20.25z"), at(1'700'000'000s + 250ms));
  EXPECT_EQ(parse_moment("2023-11-15T00:43:20+02:30"), at(1'700'000'000s));
  EXPECT_EQ(parse_moment("2023-11-14T21:13:20-01:00"), at(1'700'000'000s));
  EXPECT_EQ(parse_moment("2024-02-29T00:00:00.000000001Z"), at(1'709'164'800s + 1ns));
  for (const char* text : {"", "0s", "5", "yesterday", "2023-11-14", "2023-11-14T22:13:20",
                           "2023-02-29T00:00:00Z", "2023-11-14T25:13:20Z", "2023-11-14T22:13:20.Z",
                           "2023-11-14T22:13:20Z ", "2023-1-14T22:13:20Z", "+023-11-14T22:13:20Z"})
    EXPECT_EQ(parse_moment(text), std::nullopt) << text;
}

TEST(ScheduleTest, KeepsTheCapturesPace) {
  const Schedule::Clock::time_point now{1000s};
  Schedule twice({.speed = 2, .from = {}, .until = {}});
  twice.begin(now);
  EXPECT_EQ(twice.due(100s), now);
  twice.pass(100s);
  EXPECT_EQ(twice.due(104s), now + 2s);
  EXPECT_EQ(twice.passed(), 0s);
  EXPECT_EQ(twice.pass(104s).time_since_epoch(), 4s);
  EXPECT_LT(twice.due(103s), now + 2s);
  EXPECT_EQ(twice.pass(103s).time_since_epoch(), 4s) << "the clock does not go back";
  twice.end_round();
  EXPECT_EQ(twice.due(100s), now + 2s) << "the next round begins at once";
  EXPECT_EQ(twice.due(110s), now + 7s);
  EXPECT_EQ(twice.pass(110s).time_since_epoch(), 14s);

  Schedule max({.speed = max_speed, .from = {}, .until = {}});
  max.begin(now);
  max.pass(100s);
  EXPECT_EQ(max.due(1'000'000s), now);
}

TEST(ScheduleTest, IsNotConfusedByTimesThatJump) {
  const Schedule::Clock::time_point now{1000s};
  Schedule schedule({.speed = 0.01, .from = {}, .until = {}});
  schedule.begin(now);
  schedule.pass(0s);
  EXPECT_EQ(schedule.due(std::chrono::seconds(UINT32_MAX)), now + 1'000'000'000s);
}

TEST(ScheduleTest, LeavesOutWhatIsNotWanted) {
  using enum Schedule::Place;
  Schedule schedule({.speed = 1, .from = Moment{true, 10s}, .until = Moment{false, 130s}});
  EXPECT_EQ(schedule.place(100s), before);
  EXPECT_EQ(schedule.place(109s), before);
  EXPECT_EQ(schedule.place(110s), within);
  EXPECT_EQ(schedule.place(130s - 1ns), within);
  EXPECT_EQ(schedule.place(130s), behind);
  EXPECT_EQ(schedule.place(129s), within) << "packets may stand in another order";
  EXPECT_EQ(schedule.place(131s), far_behind);
  schedule.begin(Schedule::Clock::time_point(1s));
  EXPECT_EQ(schedule.due(110s), Schedule::Clock::time_point(1s))
      << "what is left out takes no time";
}

}  // namespace
}  // namespace trafficmirror::replay
