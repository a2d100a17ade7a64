#!/usr/bin/env bash
# Makes the seed corpus of `bytes_to_clips` with the ffmpeg command: small videos in many containers and codecs, and
# texts that FFmpeg takes for playlists. No media are committed.
#
#     fuzz/make-seeds.sh [DIRECTORY]        fuzz/corpus/bytes_to_clips if absent
set -euo pipefail
out=${1:-"$(dirname "$0")/corpus/bytes_to_clips"}
mkdir -p "$out"

skipped=0
# make NAME ARGUMENT...: 12 frames of 64x48. An encoder that this build of ffmpeg lacks is passed over.
make() {
    local name=$1
    shift
    ffmpeg -hide_banner -loglevel quiet -nostdin -y -f lavfi -i testsrc2=size=64x48:rate=12:duration=1 "$@" \
        "$out/$name" && [ -s "$out/$name" ] && return
    echo "passed over: $name" >&2
    rm -f "$out/$name"
    skipped=$((skipped + 1))
}

x264=(-c:v libx264 -preset ultrafast -g 6 -pix_fmt yuv420p)
for container in mp4 mov mkv avi flv ts nut asf 3gp m4v; do
    make "h264.$container" "${x264[@]}"
done
make h264.h264 "${x264[@]}" -f h264
make faststart.mp4 "${x264[@]}" -movflags +faststart
make fragmented.mp4 "${x264[@]}" -movflags +frag_keyframe+empty_moov
make fragmented-dash.mp4 "${x264[@]}" -movflags +frag_every_frame+dash+default_base_moof
make editlist.mp4 "${x264[@]}" -bf 2 -output_ts_offset 1.5
make main.mp4 -c:v libx264 -preset medium -bf 3 -g 6 -pix_fmt yuv420p
make high10.mp4 -c:v libx264 -preset ultrafast -pix_fmt yuv420p10le
make high444.mkv -c:v libx264 -preset ultrafast -pix_fmt yuv444p
make lossless.mkv -c:v libx264 -preset ultrafast -qp 0 -pix_fmt yuv420p
make interlaced.ts -c:v libx264 -preset ultrafast -flags +ildct+ilme -x264opts tff=1
make sound.mp4 -f lavfi -i sine=duration=1 "${x264[@]}" -c:a aac -shortest
make sound.mkv -f lavfi -i sine=duration=1 "${x264[@]}" -c:a libopus -shortest
make sound-alone.m4a -f lavfi -i sine=duration=1 -map 1 -c:a aac -t 1
make cover.m4a -f lavfi -i sine=duration=1 -map 0 -map 1 -c:a aac -c:v mjpeg -frames:v 1 -disposition:v attached_pic -t 1
make hevc.mp4 -c:v libx265 -preset ultrafast -x265-params log-level=none -tag:v hvc1
make hevc.ts -c:v libx265 -preset ultrafast -x265-params log-level=none
make hevc.hevc -c:v libx265 -preset ultrafast -x265-params log-level=none -f hevc
make hevc10.mkv -c:v libx265 -preset ultrafast -x265-params log-level=none -pix_fmt yuv420p10le
make vp8.webm -c:v libvpx -deadline realtime -cpu-used 8 -b:v 100k
make vp8.ivf -c:v libvpx -deadline realtime -cpu-used 8 -b:v 100k
make vp9.webm -c:v libvpx-vp9 -deadline realtime -cpu-used 8 -b:v 100k
make vp9.mp4 -c:v libvpx-vp9 -deadline realtime -cpu-used 8 -b:v 100k
make vp9-444.ivf -c:v libvpx-vp9 -deadline realtime -cpu-used 8 -pix_fmt yuv444p
make alpha.webm -c:v libvpx-vp9 -deadline realtime -cpu-used 8 -pix_fmt yuva420p
make av1.mp4 -c:v libaom-av1 -cpu-used 8 -pix_fmt yuv420p10le
make av1.mkv -c:v libaom-av1 -cpu-used 8 -row-mt 0
make av1.obu -c:v libaom-av1 -cpu-used 8
make av1.ivf -c:v libaom-av1 -cpu-used 8
make mpeg1.mpg -r 25 -c:v mpeg1video
make mpeg2.mpg -r 25 -c:v mpeg2video
make mpeg2.ts -r 25 -c:v mpeg2video -g 6
make mpeg2.vob -r 25 -c:v mpeg2video -f vob
make mpeg2.mxf -r 25 -c:v mpeg2video
make mpeg2.m2v -r 25 -c:v mpeg2video -f mpeg2video
make mpeg4.avi -c:v mpeg4 -bf 2 -g 6
make mpeg4.mp4 -c:v mpeg4
make mpeg4.m4v -c:v mpeg4 -f m4v
make msmpeg4.avi -c:v msmpeg4v2
make wmv1.asf -c:v wmv1
make wmv2.wmv -c:v wmv2 -f asf
make flv1.flv -c:v flv
make h261.mov -s 176x144 -c:v h261
make h263.3gp -s 128x96 -c:v h263
make h263.h263 -s 128x96 -c:v h263 -f h263
make theora.ogv -c:v libtheora -b:v 50k
make mjpeg.avi -c:v mjpeg -pix_fmt yuvj420p
make mjpeg.mov -c:v mjpeg -pix_fmt yuvj422p
make prores.mov -c:v prores_ks -profile:v 0
make dnxhd.mov -s 256x120 -frames:v 2 -c:v dnxhd -profile:v dnxhr_lb -pix_fmt yuv422p
make ffv1.mkv -c:v ffv1 -level 3
make ffv1.nut -c:v ffv1
make huffyuv.avi -s 32x24 -c:v huffyuv
make utvideo.avi -s 32x24 -c:v utvideo
make rle.mov -s 32x24 -c:v qtrle
make animation.gif -s 32x24
make png.mov -s 32x24 -c:v png
make cinepak.avi -s 32x24 -frames:v 3 -c:v cinepak
make svq1.mov -c:v svq1
make snow.nut -c:v snow -strict -2
make dirac.mkv -c:v vc2 -frames:v 1
make rv10.rm -c:v rv10
make rv20.rm -c:v rv20
make raw.avi -s 16x12 -c:v rawvideo -pix_fmt yuv420p
make raw.y4m -s 16x12 -pix_fmt yuv420p
make dv.dv -s 720x576 -r 25 -frames:v 1 -c:v dvvideo -pix_fmt yuv420p
make size-change.ts "${x264[@]}"
ffmpeg -hide_banner -loglevel quiet -nostdin -y -f lavfi -i testsrc2=size=48x64:rate=12 -frames:v 6 "${x264[@]}" -f mpegts - \
    >>"$out/size-change.ts"
for degrees in 90 180 270; do
    ffmpeg -hide_banner -loglevel quiet -nostdin -y -i "$out/h264.mp4" -c copy -metadata:s:v:0 rotate=$degrees "$out/rotated-$degrees.mp4"
done
for size in 2x2 3x5 17x16 16x400 400x16; do
    make "size-$size.mkv" -vf "scale=${size/x/:}" -c:v ffv1
done
make still.png -frames:v 1
make still.jpg -frames:v 1

# What leads elsewhere, if it is allowed to.
printf 'ffconcat version 1.0\nfile h264.mp4\n' >"$out/list.ffconcat"
printf '#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nh264.ts\n#EXT-X-ENDLIST\n' >"$out/list.m3u8"
printf 'v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n' >"$out/session.sdp"
printf '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT1S"><Period><AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>h264.mp4</BaseURL></Representation></AdaptationSet></Period></MPD>' >"$out/list.mpd"

# The last byte says how a file is decoded; 0 is the plain way.
for file in "$out"/*; do
    printf '\0' >>"$file"
done
echo "$(find "$out" -type f | wc -l) seeds, $(du -sh "$out" | cut -f1), in $out; $skipped passed over"
